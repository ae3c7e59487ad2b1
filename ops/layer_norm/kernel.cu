// Layer norm with the residual sum before it. Rows of up to kWarpRow elements in whole packs belong to a warp
// and live in its registers: each tensor is read and written once, backward sums the parameter gradients on
// the way. Other rows belong to a block and are read again from L1.
#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"
#include "core/philox.h"
#include "ops/layer_norm/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int64_t kWarpRow = 1024;
constexpr int kBlocksOfSm = 4;  // of the backward kernel: as many partial sums an SM
constexpr int kColumns = 32, kParts = 16;

__device__ __forceinline__ float branch_scale(const RowDrop& d, int64_t row) {
  if (d.p == 0) return 1;
  bool kept = philox_uniform(d.key, uint64_t(*d.step), uint64_t(row / d.rows_of_sample)) >= d.p;
  return kept ? 1 / (1 - d.p) : 0.0f;
}

/// The sum as it is stored: what is normalised is what backward will see.
template <class T>
__device__ __forceinline__ float stored_sum(float x, float branch, float scale) {
  return to_acc(from_acc<T>(x + branch * scale));
}

template <class T, int kPacks>
__global__ void __launch_bounds__(kThreads) layer_norm_fwd_warp(LayerNormForward<T> a) {
  constexpr int kW = kPack<T>;
  const int lane = int(threadIdx.x) % kWarp;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < a.rows;
       row += int64_t(gridDim.x) * kWarps) {
    const int64_t start = row * a.c;
    float v[kPacks][kW] = {};
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
      if (int64_t i = (p * kWarp + lane) * kW; i < a.c) load_acc(a.x + start + i, v[p]);
    if (a.branch != nullptr) {
      const float scale = branch_scale(a.drop, row);
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        int64_t i = (p * kWarp + lane) * kW;
        if (i >= a.c) continue;
        float add[kW];
        load_acc(a.branch + start + i, add);
#pragma unroll
        for (int k = 0; k < kW; ++k) v[p][k] = stored_sum<T>(v[p][k], add[k], scale);
        store_acc(a.sum + start + i, v[p]);
      }
    }
    float sum = 0, squares = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
#pragma unroll
      for (int k = 0; k < kW; ++k) sum += v[p][k];
    const float m = warp_sum(sum) / float(a.c);
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
      if ((p * kWarp + lane) * kW < a.c) {
#pragma unroll
        for (int k = 0; k < kW; ++k) squares += (v[p][k] - m) * (v[p][k] - m);
      }
    const float r = 1 / sqrtf(warp_sum(squares) / float(a.c) + a.eps);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      int64_t i = (p * kWarp + lane) * kW;
      if (i >= a.c) continue;
      float w[kW], b[kW];
      load_acc(a.weight + i, w);
      load_acc(a.bias + i, b);
#pragma unroll
      for (int k = 0; k < kW; ++k) v[p][k] = (v[p][k] - m) * r * w[k] + b[k];
      store_acc(a.y + start + i, v[p]);
    }
    if (lane == 0) a.mean[row] = m, a.rstd[row] = r;
  }
}

/// Each warp walks over rows and keeps its part of the parameter gradients in registers; a block adds its
/// warps' parts in order and leaves one partial sum.
template <class T, int kPacks>
__global__ void __launch_bounds__(kThreads, kPacks* kPack<T> <= 24 ? kBlocksOfSm : 2)
    layer_norm_bwd_warp(LayerNormBackward<T> a) {
  constexpr int kW = kPack<T>;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  float gw[kPacks][kW] = {}, gb[kPacks][kW] = {};
  for (int64_t row = int64_t(blockIdx.x) * kWarps + warp; row < a.rows; row += int64_t(gridDim.x) * kWarps) {
    const int64_t start = row * a.c;
    const float m = a.mean[row], r = a.rstd[row];
    float hat[kPacks][kW] = {}, g[kPacks][kW] = {}, sum_g = 0, sum_gx = 0;
    if (a.gy != nullptr) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p)
        if (int64_t i = (p * kWarp + lane) * kW; i < a.c) {
          load_acc(a.x + start + i, hat[p]);
          load_acc(a.gy + start + i, g[p]);
        }
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        int64_t i = (p * kWarp + lane) * kW;
        if (i >= a.c) continue;
        float w[kW];
        load_acc(a.weight + i, w);
#pragma unroll
        for (int k = 0; k < kW; ++k) {
          hat[p][k] = (hat[p][k] - m) * r;
          gw[p][k] += g[p][k] * hat[p][k];
          gb[p][k] += g[p][k];
          g[p][k] *= w[k];
          sum_g += g[p][k];
          sum_gx += g[p][k] * hat[p][k];
        }
      }
    }
    if (a.gx == nullptr) continue;
    const Pair<float> sums = warp_sum2(sum_g, sum_gx);
    const float mean_g = sums.first / float(a.c), mean_gx = sums.second / float(a.c);
    const float scale = a.gbranch != nullptr ? branch_scale(a.drop, row) : 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      int64_t i = (p * kWarp + lane) * kW;
      if (i >= a.c) continue;
      float out[kW] = {};
      if (a.gsum != nullptr) load_acc(a.gsum + start + i, out);
#pragma unroll
      for (int k = 0; k < kW; ++k) out[k] += r * (g[p][k] - mean_g - hat[p][k] * mean_gx);
      store_acc(a.gx + start + i, out);
      if (a.gbranch == nullptr) continue;
#pragma unroll
      for (int k = 0; k < kW; ++k) out[k] = to_acc(from_acc<T>(out[k])) * scale;
      store_acc(a.gbranch + start + i, out);
    }
  }
  if (a.gweight == nullptr) return;
  extern __shared__ float parts[];  // [kWarps][2][c]
#pragma unroll
  for (int p = 0; p < kPacks; ++p)
#pragma unroll
    for (int k = 0; k < kW; ++k)
      if (int64_t i = (p * kWarp + lane) * kW + k; i < a.c) {
        parts[warp * 2 * a.c + i] = gw[p][k];
        parts[(warp * 2 + 1) * a.c + i] = gb[p][k];
      }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < 2 * a.c; i += kThreads) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[w * 2 * a.c + i];
    a.scratch[int64_t(blockIdx.x) * 2 * a.c + i] = sum;
  }
}

/// Rows of a block are read three times; the second and third time they are in L1.
template <class T>
__global__ void layer_norm_fwd_block(LayerNormForward<T> a) {
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const T* in = a.x + row * a.c;
    if (a.branch != nullptr) {
      const float scale = branch_scale(a.drop, row);
      for (int64_t i = threadIdx.x; i < a.c; i += blockDim.x)
        a.sum[row * a.c + i] = from_acc<T>(to_acc(in[i]) + to_acc(a.branch[row * a.c + i]) * scale);
      in = a.sum + row * a.c;  // each thread reads what it wrote
    }
    float sum = 0;
    for (int64_t i = threadIdx.x; i < a.c; i += blockDim.x) sum += to_acc(in[i]);
    float m = block_sum(sum) / float(a.c), squares = 0;
    for (int64_t i = threadIdx.x; i < a.c; i += blockDim.x) {
      float d = to_acc(in[i]) - m;
      squares += d * d;
    }
    float r = 1 / sqrtf(block_sum(squares) / float(a.c) + a.eps);
    for (int64_t i = threadIdx.x; i < a.c; i += blockDim.x)
      a.y[row * a.c + i] = from_acc<T>((to_acc(in[i]) - m) * r * to_acc(a.weight[i]) + to_acc(a.bias[i]));
    if (threadIdx.x == 0) a.mean[row] = m, a.rstd[row] = r;
  }
}

template <class T>
__global__ void layer_norm_bwd_block(LayerNormBackward<T> a) {
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const float m = a.mean[row], r = a.rstd[row];
    auto gradient = [&](int64_t i) {
      return a.gy == nullptr ? 0.0f : to_acc(a.gy[row * a.c + i]) * to_acc(a.weight[i]);
    };
    auto hat = [&](int64_t i) { return (to_acc(a.x[row * a.c + i]) - m) * r; };
    float sum_g = 0, sum_gx = 0;
    for (int64_t i = threadIdx.x; i < a.c; i += blockDim.x) {
      float g = gradient(i);
      sum_g += g;
      sum_gx += g * hat(i);
    }
    Pair<float> sums = block_sum2(sum_g, sum_gx);
    const float mean_g = sums.first / float(a.c), mean_gx = sums.second / float(a.c);
    const float scale = a.gbranch != nullptr ? branch_scale(a.drop, row) : 0;
    for (int64_t i = threadIdx.x; i < a.c; i += blockDim.x) {
      float out = a.gsum != nullptr ? to_acc(a.gsum[row * a.c + i]) : 0;
      out += r * (gradient(i) - mean_g - hat(i) * mean_gx);
      a.gx[row * a.c + i] = from_acc<T>(out);
      if (a.gbranch != nullptr) a.gbranch[row * a.c + i] = from_acc<T>(to_acc(a.gx[row * a.c + i]) * scale);
    }
  }
}

/// Partial column sums: blockIdx.y takes a part of the rows; lanes are columns, so loads are coalesced.
template <class T>
__global__ void layer_norm_bwd_partial(LayerNormBackward<T> a, int64_t chunk) {
  __shared__ float weight_sum[kParts][kColumns], bias_sum[kParts][kColumns];
  int64_t column = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  int64_t first = int64_t(blockIdx.y) * chunk, last = first + chunk < a.rows ? first + chunk : a.rows;
  float w = 0, b = 0;
  if (column < a.c && a.gy != nullptr)
    for (int64_t row = first + threadIdx.y; row < last; row += kParts) {
      float g = to_acc(a.gy[row * a.c + column]);
      w += g * (to_acc(a.x[row * a.c + column]) - a.mean[row]) * a.rstd[row];
      b += g;
    }
  weight_sum[threadIdx.y][threadIdx.x] = w;
  bias_sum[threadIdx.y][threadIdx.x] = b;
  __syncthreads();
  if (threadIdx.y != 0 || column >= a.c) return;
  for (int i = 1; i < kParts; ++i) w += weight_sum[i][threadIdx.x], b += bias_sum[i][threadIdx.x];
  a.scratch[int64_t(blockIdx.y) * 2 * a.c + column] = w;
  a.scratch[(int64_t(blockIdx.y) * 2 + 1) * a.c + column] = b;
}

/// Adds the partial sums of kColumns of the 2 c numbers in a fixed order.
__global__ void layer_norm_bwd_final(const float* scratch, float* gweight, float* gbias, int64_t c,
                                     int64_t parts) {
  __shared__ float sums[kParts][kColumns];
  int64_t i = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  float sum = 0;
  if (i < 2 * c)
    for (int64_t p = threadIdx.y; p < parts; p += kParts) sum += scratch[p * 2 * c + i];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= 2 * c) return;
  for (int p = 1; p < kParts; ++p) sum += sums[p][threadIdx.x];
  (i < c ? gweight[i] : gbias[i - c]) = sum;
}

int64_t block_parts(int64_t rows, int64_t c) {
  int64_t wanted = int64_t(device_limits().sm_count) * 4 / div_up<int64_t>(c, kColumns);
  int64_t most = div_up<int64_t>(rows, 4 * kParts);
  int64_t parts = wanted < most ? wanted : most;
  return parts < 1 ? 1 : parts;
}
int64_t warp_parts(int64_t rows) {
  return std::clamp<int64_t>(div_up<int64_t>(rows, kWarps), 1,
                             int64_t(device_limits().sm_count) * kBlocksOfSm);
}

template <class T, class... Pointers>
bool by_warp(int64_t c, const Pointers*... pointers) {
  return c <= kWarpRow && c % kPack<T> == 0 && aligned16(pointers...);
}

/// f.operator()<kPacks>() with the packs that a lane needs for c elements.
template <class T, class F>
void for_packs_of(int64_t c, F f) {
  switch (div_up<int64_t>(c, kWarp * kPack<T>)) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    case 4:
      return f.template operator()<4>();
    default:
      if constexpr (kPack<T> == 4) return f.template operator()<8>();
  }
}

}  // namespace

template <class T>
void layer_norm_fwd(const LayerNormForward<T>& a, void* stream) {
  if (a.rows * a.c == 0) return;
  if (by_warp<T>(a.c, a.x, a.branch, a.weight, a.bias, a.sum, a.y)) {
    for_packs_of<T>(a.c, [&]<int kPacks>() {
      layer_norm_fwd_warp<T, kPacks><<<grid_for(a.rows, kWarps, 16), kThreads, 0, as_stream(stream)>>>(a);
    });
    return check_launch("layer_norm_fwd_warp", stream);
  }
  layer_norm_fwd_block<<<grid_of_rows(a.rows), kThreads, 0, as_stream(stream)>>>(a);
  check_launch("layer_norm_fwd_block", stream);
}

int64_t layer_norm_scratch(int64_t rows, int64_t c) {
  int64_t parts = block_parts(rows, c), of_warps = warp_parts(rows);
  return (parts > of_warps ? parts : of_warps) * 2 * c;
}

template <class T>
void layer_norm_bwd(const LayerNormBackward<T>& a, void* stream) {
  if (a.c == 0) return;
  int64_t parts = 0;
  if (by_warp<T>(a.c, a.x, a.weight, a.gy, a.gsum, a.gx, a.gbranch)) {
    parts = warp_parts(a.rows);
    const int64_t bytes = a.gweight != nullptr ? kWarps * 2 * a.c * int64_t(sizeof(float)) : 0;
    for_packs_of<T>(a.c, [&]<int kPacks>() {
      layer_norm_bwd_warp<T, kPacks><<<unsigned(parts), kThreads, size_t(bytes), as_stream(stream)>>>(a);
    });
    check_launch("layer_norm_bwd_warp", stream);
  } else {
    if (a.gx != nullptr && a.rows > 0) {
      layer_norm_bwd_block<<<grid_of_rows(a.rows), kThreads, 0, as_stream(stream)>>>(a);
      check_launch("layer_norm_bwd_block", stream);
    }
    if (a.gweight != nullptr) {
      parts = block_parts(a.rows, a.c);
      layer_norm_bwd_partial<<<dim3(unsigned(div_up<int64_t>(a.c, kColumns)), unsigned(parts)),
                               dim3(kColumns, kParts), 0, as_stream(stream)>>>(
          a, div_up(a.rows > 0 ? a.rows : 1, parts));
      check_launch("layer_norm_bwd_partial", stream);
    }
  }
  if (a.gweight == nullptr) return;
  layer_norm_bwd_final<<<unsigned(div_up<int64_t>(2 * a.c, kColumns)), dim3(kColumns, kParts), 0,
                         as_stream(stream)>>>(a.scratch, a.gweight, a.gbias, a.c, parts);
  check_launch("layer_norm_bwd_final", stream);
}

template void layer_norm_fwd(const LayerNormForward<float>&, void*);
template void layer_norm_fwd(const LayerNormForward<bf16>&, void*);
template void layer_norm_bwd(const LayerNormBackward<float>&, void*);
template void layer_norm_bwd(const LayerNormBackward<bf16>&, void*);

}  // namespace occam::kernels
