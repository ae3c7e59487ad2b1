// Copies, fills and the few in-place updates that core itself needs.
#include <type_traits>

#include "core/cuda/backend.h"
#include "core/cuda/check.h"
#include "core/cuda/launch.h"
#include "core/cuda/strided.h"
#include "core/cuda/vec.cuh"
#include "core/error.h"

namespace occam::cuda {

namespace {

constexpr int kThreads = 256;

/// Bits of an f16; core's own f16 converts on the host only.
struct Half {
  uint16_t bits;
  __device__ operator float() const {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  __device__ static Half of(float value) {
    Half h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(value));
    return h;
  }
};

struct alignas(16) Bytes16 {
  uint64_t part[2];
};

/// The conversions of core/tensor.cpp: to bool by comparison with zero, to 16-bit floats through float.
template <class To, class From>
__device__ __forceinline__ To convert(From value) {
  if constexpr (std::is_same_v<To, From>)
    return value;
  else if constexpr (std::is_same_v<From, bf16> || std::is_same_v<From, Half>)
    return convert<To>(float(value));
  else if constexpr (std::is_same_v<To, bool>)
    return value != From(0);
  else if constexpr (std::is_same_v<To, bf16>)
    return bf16(float(value));
  else if constexpr (std::is_same_v<To, Half>)
    return Half::of(float(value));
  else
    return To(value);
}

template <class To, class From, class Index>
__global__ void __launch_bounds__(kThreads) copy_elements(To* to, const From* from, Strided<2> walk) {
  OCCAM_GRID_LOOP(i, walk.count) {
    int64_t at[2];
    walk.offsets(Index(i), at);
    to[at[0]] = convert<To>(from[at[1]]);
  }
}

/// Contiguous float -> bf16 and back, eight elements a thread; `count8` = elements / 8.
template <class To, class From>
__global__ void __launch_bounds__(kThreads) copy_packs(To* to, const From* from, int64_t count8) {
  OCCAM_GRID_LOOP(i, count8) {
    float x[8];
    constexpr int kIn = kPack<From>;
    constexpr int kOut = kPack<To>;
#pragma unroll
    for (int k = 0; k < 8 / kIn; ++k) {
      float part[kIn];
      load_acc(from + i * 8 + k * kIn, part);
#pragma unroll
      for (int j = 0; j < kIn; ++j) x[k * kIn + j] = part[j];
    }
#pragma unroll
    for (int k = 0; k < 8 / kOut; ++k) {
      float part[kOut];
#pragma unroll
      for (int j = 0; j < kOut; ++j) part[j] = x[k * kOut + j];
      store_acc(to + i * 8 + k * kOut, part);
    }
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads) fill_elements(T* to, T value, Strided<1> walk) {
  OCCAM_GRID_LOOP(i, walk.count) {
    int64_t at[1];
    walk.offsets(Index(i), at);
    to[at[0]] = value;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_scaled_elements(T* to, const T* from, acc_t<T> alpha, int64_t count) {
  OCCAM_GRID_LOOP(i, count) to[i] = from_acc<T>(to_acc(to[i]) + alpha * to_acc(from[i]));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_scaled_packs(T* to, const T* from, acc_t<T> alpha, int64_t packs) {
  OCCAM_GRID_LOOP(i, packs) {
    acc_t<T> x[kPack<T>];
    acc_t<T> y[kPack<T>];
    load_acc(to + i * kPack<T>, x);
    load_acc(from + i * kPack<T>, y);
#pragma unroll
    for (int k = 0; k < kPack<T>; ++k) x[k] += alpha * y[k];
    store_acc(to + i * kPack<T>, x);
  }
}

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    zero_rows_units(Unit* to, int64_t row_units, int64_t rows, const int32_t* first) {
  const int64_t start = *first * row_units;
  OCCAM_GRID_LOOP(i, rows * row_units - start) to[start + i] = Unit{};
}

__global__ void increment_step(int64_t* step) { *step += 1; }

template <class To, class From>
void launch_copy(void* to, const void* from, const Strided<2>& walk, void* stream) {
  auto* t = static_cast<To*>(to);
  auto* f = static_cast<const From*>(from);
  const unsigned grid = grid_for(walk.count, kThreads);
  if (fits_uint32(walk.count))
    copy_elements<To, From, uint32_t><<<grid, kThreads, 0, as_stream(stream)>>>(t, f, walk);
  else
    copy_elements<To, From, int64_t><<<grid, kThreads, 0, as_stream(stream)>>>(t, f, walk);
  check_launch("copy_elements", stream);
}

/// Same dtype: elements are moved as the widest unit that strides and addresses allow.
void copy_same(void* to, const void* from, Strided<2> walk, int64_t unit, void* stream) {
  const int inner = walk.rank - 1;
  const bool dense = walk.strides[0][inner] == 1 && walk.strides[1][inner] == 1;
  auto divides = [&](int64_t factor) {
    if (walk.sizes[inner] % factor != 0) return false;
    for (int n = 0; n < 2; ++n)
      for (int axis = 0; axis < inner; ++axis)
        if (walk.strides[n][axis] % factor != 0) return false;
    const auto bytes = uintptr_t(factor * unit);
    return reinterpret_cast<uintptr_t>(to) % bytes == 0 && reinterpret_cast<uintptr_t>(from) % bytes == 0;
  };
  while (dense && unit < 16 && divides(2)) {
    unit *= 2;
    walk.count /= 2;
    walk.sizes[inner] /= 2;
    for (auto& strides : walk.strides)
      for (int axis = 0; axis < inner; ++axis) strides[axis] /= 2;
  }
  switch (unit) {
    case 1:
      return launch_copy<uint8_t, uint8_t>(to, from, walk, stream);
    case 2:
      return launch_copy<uint16_t, uint16_t>(to, from, walk, stream);
    case 4:
      return launch_copy<uint32_t, uint32_t>(to, from, walk, stream);
    case 8:
      return launch_copy<uint64_t, uint64_t>(to, from, walk, stream);
    default:
      return launch_copy<Bytes16, Bytes16>(to, from, walk, stream);
  }
}

template <class F>
void dispatch_device(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(Half{});
    case DType::i64:
      return f(int64_t{});
    case DType::i32:
      return f(int32_t{});
    case DType::u8:
      return f(uint8_t{});
    case DType::bool_:
      return f(bool{});
  }
}

template <class To, class From>
void launch_copy_packs(void* to, const void* from, int64_t count, void* stream) {
  auto* t = static_cast<To*>(to);
  auto* f = static_cast<const From*>(from);
  copy_packs<<<grid_for(count / 8, kThreads), kThreads, 0, as_stream(stream)>>>(t, f, count / 8);
  check_launch("copy_packs", stream);
}

/// True when the copy was a contiguous float <-> bf16 one and is queued.
bool copy_contiguous_bf16(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count,
                          void* stream) {
  if (count % 8 != 0 || !aligned16(to, from)) return false;
  if (to_dtype == DType::bf16 && from_dtype == DType::f32)
    launch_copy_packs<bf16, float>(to, from, count, stream);
  else if (to_dtype == DType::f32 && from_dtype == DType::bf16)
    launch_copy_packs<float, bf16>(to, from, count, stream);
  else
    return false;
  return true;
}

template <class T>
void launch_fill(void* to, T value, const Strided<1>& walk, void* stream) {
  auto* t = static_cast<T*>(to);
  const unsigned grid = grid_for(walk.count, kThreads);
  if (fits_uint32(walk.count))
    fill_elements<T, uint32_t><<<grid, kThreads, 0, as_stream(stream)>>>(t, value, walk);
  else
    fill_elements<T, int64_t><<<grid, kThreads, 0, as_stream(stream)>>>(t, value, walk);
  check_launch("fill_elements", stream);
}

template <class T>
void launch_add_scaled(void* to, const void* from, int64_t count, double alpha, void* stream) {
  auto* t = static_cast<T*>(to);
  auto* f = static_cast<const T*>(from);
  const auto a = acc_t<T>(alpha);
  const int64_t packs = aligned16(to, from) ? count / kPack<T> : 0;
  if (packs > 0) {
    add_scaled_packs<<<grid_for(packs, kThreads), kThreads, 0, as_stream(stream)>>>(t, f, a, packs);
    check_launch("add_scaled_packs", stream);
  }
  const int64_t done = packs * kPack<T>;
  if (done == count) return;
  add_scaled_elements<<<grid_for(count - done, kThreads), kThreads, 0, as_stream(stream)>>>(
      t + done, f + done, a, count - done);
  check_launch("add_scaled_elements", stream);
}

}  // namespace

void copy_strided(void* to, DType to_dtype, const Shape& to_strides, const void* from, DType from_dtype,
                  const Shape& from_strides, const Shape& shape, void* stream) {
  const Strided<2> walk = make_strided<2>(shape, {&to_strides, &from_strides});
  if (walk.count == 0) return;
  const bool contiguous = walk.contiguous(0) && walk.contiguous(1);
  if (to_dtype == from_dtype) {
    const size_t unit = size_of(to_dtype);
    if (!contiguous) return copy_same(to, from, walk, int64_t(unit), stream);
    note_work();
    OCCAM_CUDA_CHECK(
        cudaMemcpyAsync(to, from, size_t(walk.count) * unit, cudaMemcpyDeviceToDevice, as_stream(stream)));
    return;
  }
  if (contiguous && copy_contiguous_bf16(to, to_dtype, from, from_dtype, walk.count, stream)) return;
  dispatch_device(to_dtype, [&](auto t) {
    dispatch_device(from_dtype, [&](auto f) {
      if constexpr (!std::is_same_v<decltype(t), decltype(f)>)
        launch_copy<decltype(t), decltype(f)>(to, from, walk, stream);
    });
  });
}

void fill_strided(void* to, DType dtype, const Shape& strides, const Shape& shape, double value,
                  void* stream) {
  const Strided<1> walk = make_strided<1>(shape, {&strides});
  if (walk.count == 0) return;
  // A positive zero is all zero bits in every dtype; a negative one is not.
  if (std::bit_cast<uint64_t>(value) == 0 && walk.contiguous(0))
    return memset_async(to, 0, size_t(walk.count) * size_of(dtype), stream);
  switch (dtype) {
    case DType::f32:
      return launch_fill(to, float(value), walk, stream);
    case DType::f64:
      return launch_fill(to, value, walk, stream);
    case DType::bf16:
      return launch_fill(to, bf16(float(value)), walk, stream);
    case DType::f16:
      return launch_fill(to, f16(float(value)).bits, walk, stream);
    case DType::i64:
      return launch_fill(to, int64_t(value), walk, stream);
    case DType::i32:
      return launch_fill(to, int32_t(value), walk, stream);
    case DType::u8:
      return launch_fill(to, uint8_t(value), walk, stream);
    case DType::bool_:
      return launch_fill(to, value != 0, walk, stream);
  }
}

void add_scaled(void* to, const void* from, DType dtype, int64_t count, double alpha, void* stream) {
  if (count == 0) return;
  if (dtype == DType::f32) return launch_add_scaled<float>(to, from, count, alpha, stream);
  if (dtype == DType::f64) return launch_add_scaled<double>(to, from, count, alpha, stream);
  if (dtype == DType::bf16) return launch_add_scaled<bf16>(to, from, count, alpha, stream);
  fail(ErrorKind::shape, "add_ on a GPU takes f32, f64 and bf16, not " + std::string(name_of(dtype)));
}

void zero_rows_from(void* to, int64_t row_bytes, int64_t rows, const int32_t* first, void* stream) {
  auto launch = [&]<class Unit>(Unit* units) {
    const int64_t in_row = row_bytes / int64_t(sizeof(Unit));
    zero_rows_units<<<grid_for(rows * in_row, kThreads, 4), kThreads, 0, as_stream(stream)>>>(units, in_row,
                                                                                              rows, first);
  };
  if (row_bytes % 16 == 0 && aligned16(to))
    launch(static_cast<Bytes16*>(to));
  else
    launch(static_cast<uint8_t*>(to));
  check_launch("zero_rows_units", stream);
}
void increment(int64_t* step, void* stream) {
  increment_step<<<1, 1, 0, as_stream(stream)>>>(step);
  check_launch("increment_step", stream);
}

}  // namespace occam::cuda
