#pragma once
// CUDA statuses as Error{device}. Plain functions, no fmt: this header serves .cu files too.
#include <cuda_runtime_api.h>

#include <cstdint>

namespace occam::cuda {

/// Throws Error{device} ("out of memory" statuses: Error{memory}) naming the call, the place and the status.
[[noreturn]] void throw_cuda_error(cudaError_t status, const char* call, const char* file, int line);

/// Call right after each launch: `softmax_fwd_row<<<...>>>(...); check_launch("softmax_fwd_row", stream);`
/// Throws Error{device} when the launch was refused. With OCCAM_SYNC=1 in the environment it also waits for
/// `stream`, so that a fault inside the kernel names the kernel (not while the stream is being captured).
void check_launch(const char* kernel, void* stream);

/// Counts what is put on any stream: kernels (by check_launch), copies, fills, graphs and waits.
void note_work() noexcept;
uint64_t work_count() noexcept;

/// Prints a status that a destructor or a noexcept function met to stderr; `cudaSuccess` prints nothing.
/// Statuses of a driver that is shutting down are ignored.
void report_cuda_error(cudaError_t status, const char* call) noexcept;

/// Stream handles cross the plain-typed interfaces as void*.
inline cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

/// Makes `device` current for the calling thread while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

/// Lets this thread call what an open capture would forbid although it does not touch the captured work:
/// reserving memory, creating handles, asking events that lie outside the capture.
class AllowInCapture {
 public:
  AllowInCapture();
  ~AllowInCapture();
  AllowInCapture(const AllowInCapture&) = delete;
  AllowInCapture& operator=(const AllowInCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace occam::cuda

/// OCCAM_CUDA_CHECK(cudaMemcpyAsync(...));
#define OCCAM_CUDA_CHECK(call)                                                   \
  do {                                                                           \
    const cudaError_t occam_status_ = (call);                                    \
    if (occam_status_ != cudaSuccess)                                            \
      ::occam::cuda::throw_cuda_error(occam_status_, #call, __FILE__, __LINE__); \
  } while (false)
