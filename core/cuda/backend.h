#pragma once
// What core's host code asks of CUDA, in plain types. Compiled in when OCCAM_CUDA is 1; nothing else in core
// knows CUDA.
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/allocator.h"
#include "core/dtype.h"
#include "core/shape.h"
#include "core/stream.h"

namespace occam::cuda {

/// 0 when there is no driver or no GPU. Never throws.
int device_count() noexcept;
/// As the driver calls it: "NVIDIA H100 80GB HBM3".
std::string device_name(int device);
void synchronize(int device);
/// cudaStream_t of the role, made on first use. Makes `device` current for the calling thread, as launches
/// need it; a thread works with one device at a time.
void* stream(int device, StreamRole role);
void synchronize_stream(void* stream);
/// `waiter` waits for all work queued on `on`, through an event.
void stream_wait(void* waiter, void* on);

/// Caching allocator: 512 B rounding, 2 and 20 MiB segments, best fit, split and merge; on failure processes
/// events, trims, retries, then throws Error{memory} with requested, free and reserved bytes.
Allocator& caching_allocator(int device);
/// Page-locked host memory from the same kind of cache.
Allocator& pinned_allocator();
/// Tells the allocators that `stream` uses the block around `pointer`, when it is not the stream the block
/// was allocated on: the block, once freed, waits for it. memcpy_async tells it by itself; pointers of others
/// are ignored.
void record_use(const void* pointer, void* stream);

/// Any direction by unified addressing; asynchronous on `stream` when the host side is page-locked.
void memcpy_async(void* to, const void* from, size_t bytes, void* stream);
/// A copy that is no part of an open capture: made at once, the host waits.
void memcpy_now(void* to, const void* from, size_t bytes, int device);
/// True while work queued on `stream` is recorded into a graph instead of run.
bool is_capturing(void* stream) noexcept;
void memset_async(void* to, int byte, size_t bytes, void* stream);

/// Element-wise copy with conversion between strided device tensors of equal shape.
void copy_strided(void* to, DType to_dtype, const Shape& to_strides, const void* from, DType from_dtype,
                  const Shape& from_strides, const Shape& shape, void* stream);
/// Every element of a strided device tensor becomes `value`.
void fill_strided(void* to, DType dtype, const Shape& strides, const Shape& shape, double value,
                  void* stream);
/// to += alpha * from, contiguous; f32, f64, bf16 (bf16 adds in float and rounds once).
void add_scaled(void* to, const void* from, DType dtype, int64_t count, double alpha, void* stream);
/// Zeros in rows *first .. rows; *first lies on the device.
void zero_rows_from(void* to, int64_t row_bytes, int64_t rows, const int32_t* first, void* stream);
/// *step += 1 (i64).
void increment(int64_t* step, void* stream);

/// NVTX ranges for Scope.
void range_push(const char* name) noexcept;
void range_pop() noexcept;

}  // namespace occam::cuda
