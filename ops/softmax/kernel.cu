#include "ops/softmax/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

/// kLanes neighbouring threads share a row, a part of a warp, a warp, or the block, and hold kPieces pieces
/// of it each in registers, of kWide elements.
template <int kLanes_, int kPieces_, int kWide_>
struct Team {
  static constexpr int kLanes = kLanes_, kPieces = kPieces_, kWide = kWide_;
  static constexpr int kRows = kThreads / kLanes;  // rows of a block
  static __device__ int rank() { return int(threadIdx.x) % kLanes; }
  static __device__ int row() { return int(threadIdx.x) / kLanes; }
  static __device__ float sum(float x) {
    if constexpr (kLanes <= kWarp) return warp_sum<kLanes>(x);
    return block_sum(x);
  }
  static __device__ float max(float x) {
    if constexpr (kLanes <= kWarp) return warp_max<kLanes>(x);
    return block_max(x);
  }
};

/// f(p, i): the thread's pieces of a row of n and where they begin; unrolled, so that p may index registers.
template <class Team, class F>
__device__ __forceinline__ void for_pieces(int n, F f) {
#pragma unroll
  for (int p = 0; p < Team::kPieces; ++p)
    if (const int i = (p * Team::kLanes + Team::rank()) * Team::kWide; i < n) f(p, i);
}

/// Rows that fit into the registers of a team: one pass over memory, one exponential an element.
template <class Team, class T>
__global__ void __launch_bounds__(kThreads) softmax_fwd_held(const T* x, T* y, int64_t rows, int n) {
  constexpr int kWide = Team::kWide;
  for (int64_t first = int64_t(blockIdx.x) * Team::kRows; first < rows;
       first += int64_t(gridDim.x) * Team::kRows) {
    const int64_t row = first + Team::row();
    const int here = row < rows ? n : 0;  // teams without a row still take part in the warp's shuffles
    float v[Team::kPieces][kWide], largest = -infinity_<float>(), sum = 0;
    for_pieces<Team>(here, [&](int p, int i) { load_acc(x + row * n + i, v[p]); });
    for_pieces<Team>(here, [&](int p, int) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) largest = max_(largest, v[p][j]);
    });
    largest = Team::max(largest);
    for_pieces<Team>(here, [&](int p, int) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) sum += v[p][j] = exp_(v[p][j] - largest);
    });
    const float scale = 1 / Team::sum(sum);
    for_pieces<Team>(here, [&](int p, int i) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) v[p][j] *= scale;
      store_acc(y + row * n + i, v[p]);
    });
  }
}

template <class Team, class T>
__global__ void __launch_bounds__(kThreads)
    softmax_bwd_held(const T* y, const T* gy, T* gx, int64_t rows, int n) {
  constexpr int kWide = Team::kWide;
  for (int64_t first = int64_t(blockIdx.x) * Team::kRows; first < rows;
       first += int64_t(gridDim.x) * Team::kRows) {
    const int64_t row = first + Team::row();
    const int here = row < rows ? n : 0;
    float a[Team::kPieces][kWide], b[Team::kPieces][kWide], dot = 0;
    for_pieces<Team>(here, [&](int p, int i) {
      load_acc(y + row * n + i, a[p]);
      load_acc(gy + row * n + i, b[p]);
    });
    for_pieces<Team>(here, [&](int p, int) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) dot += a[p][j] * b[p][j];
    });
    dot = Team::sum(dot);
    for_pieces<Team>(here, [&](int p, int i) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) a[p][j] *= b[p][j] - dot;
      store_acc(gx + row * n + i, a[p]);
    });
  }
}

/// f(i): where the thread's pieces of a row of any length begin.
template <int kWide, class F>
__device__ __forceinline__ void along(int64_t n, F f) {
  for (int64_t i = int64_t(threadIdx.x) * kWide; i < n; i += kThreads * kWide) f(i);
}

/// Longer rows, a block each. A row is read three times.
template <int kWide, class T>
__global__ void __launch_bounds__(kThreads) softmax_fwd_long(const T* x, T* y, int64_t rows, int64_t n) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* in = x + row * n;
    T* out = y + row * n;
    float v[kWide], largest = -infinity_<float>(), sum = 0;
    along<kWide>(n, [&](int64_t i) {
      load_acc(in + i, v);
#pragma unroll
      for (int j = 0; j < kWide; ++j) largest = max_(largest, v[j]);
    });
    largest = block_max(largest);
    along<kWide>(n, [&](int64_t i) {
      load_acc(in + i, v);
#pragma unroll
      for (int j = 0; j < kWide; ++j) sum += exp_(v[j] - largest);
    });
    const float scale = 1 / block_sum(sum);
    along<kWide>(n, [&](int64_t i) {
      load_acc(in + i, v);
#pragma unroll
      for (int j = 0; j < kWide; ++j) v[j] = exp_(v[j] - largest) * scale;
      store_acc(out + i, v);
    });
  }
}

template <int kWide, class T>
__global__ void __launch_bounds__(kThreads)
    softmax_bwd_long(const T* y, const T* gy, T* gx, int64_t rows, int64_t n) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T *p = y + row * n, *g = gy + row * n;
    T* out = gx + row * n;
    float a[kWide], b[kWide], dot = 0;
    along<kWide>(n, [&](int64_t i) {
      load_acc(p + i, a);
      load_acc(g + i, b);
#pragma unroll
      for (int j = 0; j < kWide; ++j) dot += a[j] * b[j];
    });
    dot = block_sum(dot);
    along<kWide>(n, [&](int64_t i) {
      load_acc(p + i, a);
      load_acc(g + i, b);
#pragma unroll
      for (int j = 0; j < kWide; ++j) a[j] *= b[j] - dot;
      store_acc(out + i, a);
    });
  }
}

/// held.operator()<Team>() with the smallest team that can hold a row of n, or longer.operator()<kWide>().
template <int kWide, class Held, class Longer>
void for_length(int64_t n, Held held, Longer longer) {
  constexpr int kFew = kWide == 1 ? 8 : 1, kMany = kWide == 1 ? 8 : 4;
  const int64_t pieces = div_up<int64_t>(n, kWide);
  if (pieces <= 8 * kFew) return held.template operator()<Team<8, kFew, kWide>>();
  if (pieces <= kWarp * kFew) return held.template operator()<Team<kWarp, kFew, kWide>>();
  if constexpr (kFew < kMany)
    if (pieces <= kWarp * kMany) return held.template operator()<Team<kWarp, kMany, kWide>>();
  if (pieces <= kThreads * kMany) return held.template operator()<Team<kThreads, kMany, kWide>>();
  longer.template operator()<kWide>();
}

}  // namespace

template <class T>
void softmax_fwd(const T* x, T* y, int64_t rows, int64_t n, void* stream) {
  if (rows * n == 0) return;
  const auto held = [&]<class Team>() {
    softmax_fwd_held<Team>
        <<<grid_of_rows(div_up<int64_t>(rows, Team::kRows)), kThreads, 0, as_stream(stream)>>>(x, y, rows,
                                                                                               int(n));
  };
  const auto longer = [&]<int kWide>() {
    softmax_fwd_long<kWide><<<grid_of_rows(rows), kThreads, 0, as_stream(stream)>>>(x, y, rows, n);
  };
  n % kPack<T> == 0 && aligned16(x, y) ? for_length<kPack<T>>(n, held, longer)
                                       : for_length<1>(n, held, longer);
  check_launch("softmax_fwd", stream);
}

template <class T>
void softmax_bwd(const T* y, const T* gy, T* gx, int64_t rows, int64_t n, void* stream) {
  if (rows * n == 0) return;
  const auto held = [&]<class Team>() {
    softmax_bwd_held<Team>
        <<<grid_of_rows(div_up<int64_t>(rows, Team::kRows)), kThreads, 0, as_stream(stream)>>>(y, gy, gx,
                                                                                               rows, int(n));
  };
  const auto longer = [&]<int kWide>() {
    softmax_bwd_long<kWide><<<grid_of_rows(rows), kThreads, 0, as_stream(stream)>>>(y, gy, gx, rows, n);
  };
  n % kPack<T> == 0 && aligned16(y, gy, gx) ? for_length<kPack<T>>(n, held, longer)
                                            : for_length<1>(n, held, longer);
  check_launch("softmax_bwd", stream);
}

#define OCCAM_INSTANTIATE(T)                                        \
  template void softmax_fwd(const T*, T*, int64_t, int64_t, void*); \
  template void softmax_bwd(const T*, const T*, T*, int64_t, int64_t, void*)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(bf16);

}  // namespace occam::kernels
