// A warp has the row of one (token, r): two passes over it, the second from L1. Packs where c and the
// addresses allow it.
#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"
#include "ops/rms_norm/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128, kColumns = 128;

template <int kWide, class T>
__device__ __forceinline__ void load(const T* from, float (&to)[kWide]) {
  if constexpr (kWide == 1)
    to[0] = to_acc(from[0]);
  else
    load_acc(from, to);
}
template <int kWide, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[kWide]) {
  if constexpr (kWide == 1)
    to[0] = from_acc<T>(from[0]);
  else
    store_acc(to, from);
}

template <class T>
struct Row {
  int64_t token, r, gate;  // of [b t]; offset of the gate's row
  __device__ Row(const RmsNormArgs<T>& a, int64_t row) : token(row / a.r), r(row % a.r) {
    gate = token / a.t * a.gate_b + token % a.t * a.gate_t + r * a.gate_r;
  }
  /// Element i of (a, c) in a packed [b t, a, r, c].
  __device__ int64_t at(const RmsNormArgs<T>& a, int64_t i) const {
    return ((token * a.a + i / a.c) * a.r + r) * a.c + i % a.c;
  }
};

/// u of kWide elements from i on.
template <int kWide, class T>
__device__ __forceinline__ void gated(const RmsNormArgs<T>& a, const Row<T>& row, int64_t i,
                                      float (&u)[kWide]) {
  load<kWide>(a.x + row.at(a, i), u);
  if (a.gate == nullptr) return;
  float z[kWide];
  load<kWide>(a.gate + row.gate + i, z);
#pragma unroll
  for (int j = 0; j < kWide; ++j) u[j] *= silu(z[j]);
}

template <int kWide, class T>
__global__ void __launch_bounds__(kThreads) rms_norm_fwd_warp(RmsNormArgs<T> a) {
  const int64_t rows = a.b * a.t * a.r, width = a.a * a.c, lane = threadIdx.x % kWarp * kWide;
  for (int64_t n = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp; n < rows;
       n += int64_t(gridDim.x) * (kThreads / kWarp)) {
    const Row<T> row(a, n);
    float squares = 0, u[kWide], w[kWide];
    for (int64_t i = lane; i < width; i += kWarp * kWide) {
      gated<kWide>(a, row, i, u);
#pragma unroll
      for (int j = 0; j < kWide; ++j) squares += u[j] * u[j];
    }
    const float rstd = 1 / sqrtf(warp_sum(squares) / float(width) + float(a.eps));
    if (threadIdx.x % kWarp == 0) a.rstd[n] = rstd;
    for (int64_t i = lane; i < width; i += kWarp * kWide) {
      gated<kWide>(a, row, i, u);
      load<kWide>(a.weight + row.r * width + i, w);
#pragma unroll
      for (int j = 0; j < kWide; ++j) u[j] *= rstd * w[j];
      store<kWide>(a.y + row.at(a, i), u);
    }
  }
}

template <int kWide, class T>
__global__ void __launch_bounds__(kThreads) rms_norm_bwd_warp(RmsNormArgs<T> a) {
  const int64_t rows = a.b * a.t * a.r, width = a.a * a.c, lane = threadIdx.x % kWarp * kWide;
  for (int64_t n = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp; n < rows;
       n += int64_t(gridDim.x) * (kThreads / kWarp)) {
    const Row<T> row(a, n);
    const float rstd = a.rstd[n];
    float product = 0, u[kWide], w[kWide], g[kWide];
    for (int64_t i = lane; i < width; i += kWarp * kWide) {
      gated<kWide>(a, row, i, u);
      load<kWide>(a.weight + row.r * width + i, w);
      load<kWide>(a.gy + row.at(a, i), g);
#pragma unroll
      for (int j = 0; j < kWide; ++j) product += g[j] * w[j] * u[j];
    }
    const float along = warp_sum(product) / float(width) * rstd * rstd;
    for (int64_t i = lane; i < width; i += kWarp * kWide) {
      gated<kWide>(a, row, i, u);
      load<kWide>(a.weight + row.r * width + i, w);
      load<kWide>(a.gy + row.at(a, i), g);
#pragma unroll
      for (int j = 0; j < kWide; ++j) g[j] = rstd * (g[j] * w[j] - u[j] * along);  // of u
      if (a.gate != nullptr) {
        float x[kWide], z[kWide];
        load<kWide>(a.x + row.at(a, i), x);
        load<kWide>(a.gate + row.gate + i, z);
#pragma unroll
        for (int j = 0; j < kWide; ++j) x[j] *= g[j] * silu_grad(z[j]), g[j] *= silu(z[j]);
        store<kWide>(a.ggate + n * width + i, x);
      }
      store<kWide>(a.gx + row.at(a, i), g);
    }
  }
}

/// partial[part] = sum over every parts-th token of gy u rstd.
template <class T>
__global__ void __launch_bounds__(kColumns) rms_norm_bwd_weight(RmsNormArgs<T> a) {
  const int64_t width = a.a * a.c, column = int64_t(blockIdx.y) * kColumns + threadIdx.x;
  if (column >= a.r * width) return;
  const int64_t r = column / width, i = column % width;
  float sum = 0;
#pragma unroll 4
  for (int64_t token = blockIdx.x; token < a.b * a.t; token += gridDim.x) {
    const Row<T> row(a, token * a.r + r);
    float u[1];
    gated<1>(a, row, i, u);
    sum += to_acc(a.gy[row.at(a, i)]) * u[0] * a.rstd[token * a.r + r];
  }
  a.partial[blockIdx.x * a.r * width + column] = sum;
}

template <class T>
bool packs(const RmsNormArgs<T>& a) {
  return a.c % kPack<T> == 0 && (a.gate_b | a.gate_t | a.gate_r) % kPack<T> == 0 &&
         aligned16(a.x, a.weight, a.gate, a.y, a.gy, a.gx, a.ggate);
}

}  // namespace

int64_t rms_norm_parts(int64_t rows) { return rows < 256 ? rows : 256; }

template <class T>
void rms_norm_fwd(const RmsNormArgs<T>& a, void* stream) {
  auto* kernel = packs(a) ? rms_norm_fwd_warp<kPack<T>, T> : rms_norm_fwd_warp<1, T>;
  kernel<<<grid_for(a.b * a.t * a.r * kWarp, kThreads), kThreads, 0, as_stream(stream)>>>(a);
  check_launch("rms_norm_fwd_warp", stream);
}

template <class T>
void rms_norm_bwd(const RmsNormArgs<T>& a, void* stream) {
  auto* kernel = packs(a) ? rms_norm_bwd_warp<kPack<T>, T> : rms_norm_bwd_warp<1, T>;
  kernel<<<grid_for(a.b * a.t * a.r * kWarp, kThreads), kThreads, 0, as_stream(stream)>>>(a);
  check_launch("rms_norm_bwd_warp", stream);
  if (a.partial == nullptr) return;
  const dim3 grid(unsigned(rms_norm_parts(a.b * a.t)), unsigned(div_up<int64_t>(a.a * a.r * a.c, kColumns)));
  rms_norm_bwd_weight<T><<<grid, kColumns, 0, as_stream(stream)>>>(a);
  check_launch("rms_norm_bwd_weight", stream);
}

template void rms_norm_fwd(const RmsNormArgs<float>&, void*);
template void rms_norm_fwd(const RmsNormArgs<bf16>&, void*);
template void rms_norm_bwd(const RmsNormArgs<float>&, void*);
template void rms_norm_bwd(const RmsNormArgs<bf16>&, void*);

}  // namespace occam::kernels
