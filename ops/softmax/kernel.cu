#include "ops/softmax/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128;
constexpr int64_t kWarpRow = 1024;  // rows up to this length are a warp's, longer ones a block's

/// The threads that share a row: a warp, or the block.
template <bool kByWarp>
struct Team {
  static constexpr int kSize = kByWarp ? kWarp : kThreads;
  static constexpr int kRows = kThreads / kSize;  // rows of a block
  static __device__ int rank() { return int(threadIdx.x) % kSize; }
  static __device__ int64_t first_row() { return int64_t(blockIdx.x) * kRows + threadIdx.x / kSize; }
  static __device__ float sum(float x) {
    if constexpr (kByWarp) return warp_sum(x);
    return block_sum(x);
  }
  static __device__ float max(float x) {
    if constexpr (kByWarp) return warp_max(x);
    return block_max(x);
  }
};

/// f(x) of this thread's elements.
template <class Team, bool kPacked, class T, class F>
__device__ void each(const T* x, int64_t n, F f) {
  if constexpr (kPacked) {
    for (int64_t i = Team::rank() * kPack<T>; i < n; i += Team::kSize * kPack<T>) {
      float v[kPack<T>];
      load_acc(x + i, v);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) f(v[j]);
    }
  } else {
    for (int64_t i = Team::rank(); i < n; i += Team::kSize) f(to_acc(x[i]));
  }
}

/// A row is read three times; after the first it is in L1.
template <class Team, bool kPacked, class T>
__global__ void __launch_bounds__(kThreads) softmax_fwd_row(const T* x, T* y, int64_t rows, int64_t n) {
  for (int64_t row = Team::first_row(); row < rows; row += int64_t(gridDim.x) * Team::kRows) {
    const T* in = x + row * n;
    T* out = y + row * n;
    float largest = -infinity_<float>(), sum = 0;
    each<Team, kPacked>(in, n, [&](float v) { largest = max_(largest, v); });
    largest = Team::max(largest);
    each<Team, kPacked>(in, n, [&](float v) { sum += exp_(v - largest); });
    float scale = 1 / Team::sum(sum);
    if constexpr (kPacked) {
      for (int64_t i = Team::rank() * kPack<T>; i < n; i += Team::kSize * kPack<T>) {
        float v[kPack<T>];
        load_acc(in + i, v);
#pragma unroll
        for (int j = 0; j < kPack<T>; ++j) v[j] = exp_(v[j] - largest) * scale;
        store_acc(out + i, v);
      }
    } else {
      for (int64_t i = Team::rank(); i < n; i += Team::kSize)
        out[i] = from_acc<T>(exp_(to_acc(in[i]) - largest) * scale);
    }
  }
}

template <class Team, bool kPacked, class T>
__global__ void __launch_bounds__(kThreads)
    softmax_bwd_row(const T* y, const T* gy, T* gx, int64_t rows, int64_t n) {
  for (int64_t row = Team::first_row(); row < rows; row += int64_t(gridDim.x) * Team::kRows) {
    const T *p = y + row * n, *g = gy + row * n;
    T* out = gx + row * n;
    float dot = 0;
    if constexpr (kPacked) {
      for (int64_t i = Team::rank() * kPack<T>; i < n; i += Team::kSize * kPack<T>) {
        float a[kPack<T>], b[kPack<T>];
        load_acc(p + i, a);
        load_acc(g + i, b);
#pragma unroll
        for (int j = 0; j < kPack<T>; ++j) dot += a[j] * b[j];
      }
    } else {
      for (int64_t i = Team::rank(); i < n; i += Team::kSize) dot += to_acc(p[i]) * to_acc(g[i]);
    }
    dot = Team::sum(dot);
    if constexpr (kPacked) {
      for (int64_t i = Team::rank() * kPack<T>; i < n; i += Team::kSize * kPack<T>) {
        float a[kPack<T>], b[kPack<T>];
        load_acc(p + i, a);
        load_acc(g + i, b);
#pragma unroll
        for (int j = 0; j < kPack<T>; ++j) a[j] *= b[j] - dot;
        store_acc(out + i, a);
      }
    } else {
      for (int64_t i = Team::rank(); i < n; i += Team::kSize)
        out[i] = from_acc<T>(to_acc(p[i]) * (to_acc(g[i]) - dot));
    }
  }
}

/// f.template operator()<Team, kPacked>() for rows of n elements.
template <class F>
void for_rows_of(int64_t n, bool packed, F f) {
  if (n <= kWarpRow && packed) return f.template operator()<Team<true>, true>();
  if (n <= kWarpRow) return f.template operator()<Team<true>, false>();
  if (packed) return f.template operator()<Team<false>, true>();
  f.template operator()<Team<false>, false>();
}

}  // namespace

template <class T>
void softmax_fwd(const T* x, T* y, int64_t rows, int64_t n, void* stream) {
  if (rows * n == 0) return;
  for_rows_of(n, n % kPack<T> == 0 && aligned16(x, y), [&]<class Team, bool kPacked>() {
    softmax_fwd_row<Team, kPacked>
        <<<grid_of_rows(div_up<int64_t>(rows, Team::kRows)), kThreads, 0, as_stream(stream)>>>(x, y, rows, n);
  });
  check_launch("softmax_fwd_row", stream);
}

template <class T>
void softmax_bwd(const T* y, const T* gy, T* gx, int64_t rows, int64_t n, void* stream) {
  if (rows * n == 0) return;
  for_rows_of(n, n % kPack<T> == 0 && aligned16(y, gy, gx), [&]<class Team, bool kPacked>() {
    softmax_bwd_row<Team, kPacked>
        <<<grid_of_rows(div_up<int64_t>(rows, Team::kRows)), kThreads, 0, as_stream(stream)>>>(y, gy, gx,
                                                                                               rows, n);
  });
  check_launch("softmax_bwd_row", stream);
}

#define OCCAM_INSTANTIATE(T)                                        \
  template void softmax_fwd(const T*, T*, int64_t, int64_t, void*); \
  template void softmax_bwd(const T*, const T*, T*, int64_t, int64_t, void*)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(bf16);

}  // namespace occam::kernels
