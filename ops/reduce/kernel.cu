#include "ops/reduce/kernel.h"

#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 256;

/// A block a row; threads stride over it.
template <class T, class Y>
__global__ void reduce_sum_rows(const T* x, Y* y, int64_t rows, int64_t n) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += to_acc(x[row * n + i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[row] = from_acc<Y>(sum);
  }
}

/// A thread kWide neighbouring columns, and every blockDim.y-th row of the part that blockIdx.y says: a block
/// writes its partial sum of these.
template <int kWide, class T, class Y>
__global__ void __launch_bounds__(kThreads)
    reduce_sum_columns(const T* x, Y* y, int64_t outer, int64_t n, int64_t inner, int64_t chunk) {
  const int64_t columns = outer * inner, step = int64_t(blockDim.y) * inner;
  const int64_t c = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kWide;
  const int64_t first = int64_t(blockIdx.y) * chunk, last = first + chunk < n ? first + chunk : n;
  float sum[kWide] = {}, v[kWide];
  if (c < columns) {
    const T* p = x + (c / inner) * n * inner + c % inner + (first + threadIdx.y) * inner;
#pragma unroll 8
    for (int64_t k = first + threadIdx.y; k < last; k += blockDim.y, p += step) {
      load_acc(p, v);
#pragma unroll
      for (int j = 0; j < kWide; ++j) sum[j] += v[j];
    }
  }
  if (blockDim.y > 1) {
    __shared__ float sums[kThreads][kWide];
#pragma unroll
    for (int j = 0; j < kWide; ++j) sums[threadIdx.y * blockDim.x + threadIdx.x][j] = sum[j];
    __syncthreads();
    if (threadIdx.y > 0) return;
    for (unsigned row = 1; row < blockDim.y; ++row)
#pragma unroll
      for (int j = 0; j < kWide; ++j) sum[j] += sums[row * blockDim.x + threadIdx.x][j];
  }
  if (c >= columns) return;
#pragma unroll
  for (int j = 0; j < kWide; ++j) y[int64_t(blockIdx.y) * columns + c + j] = from_acc<Y>(sum[j]);
}

template <class T>
__global__ void reduce_max_columns(const T* x, T* y, int64_t* index, int64_t outer, int64_t n,
                                   int64_t inner) {
  OCCAM_GRID_LOOP(c, outer * inner) {
    const T* p = x + (c / inner) * n * inner + c % inner;
    float best = to_acc(p[0]);
    int64_t at = 0;
    for (int64_t k = 1; k < n; ++k) {
      float v = to_acc(p[k * inner]);
      if (v > best || (v != v && best == best)) best = v, at = k;
    }
    y[c] = from_acc<T>(best);
    index[c] = at;
  }
}

template <class T>
__global__ void reduce_max_bwd_kernel(const T* gy, const int64_t* index, T* gx, int64_t outer, int64_t n,
                                      int64_t inner) {
  OCCAM_GRID_LOOP(i, outer * n * inner) {
    int64_t column = i / (n * inner) * inner + i % inner, k = i / inner % n;
    gx[i] = k == index[column] ? gy[column] : from_acc<T>(0.0f);
  }
}

/// Blocks of a sum along columns.
struct Columns {
  int wide;       // columns of a thread
  dim3 block;     // threads side by side, and rows at a time
  int64_t tiles;  // blocks side by side
  int64_t parts;  // that the summed axis is cut into, so that a few long columns still fill the device

  template <class T>
  Columns(const T* x, int64_t outer, int64_t n, int64_t inner)
      : wide(inner % kPack<T> == 0 && aligned16(x) ? kPack<T> : 1), block(kThreads) {
    const int64_t groups = std::max<int64_t>(outer * inner / wide, 1);
    while (block.x > kWarp && (n >= 16 * block.y && (groups < block.x || block.y < 8)))
      block.x /= 2, block.y *= 2;
    tiles = div_up<int64_t>(groups, block.x);
    const int64_t wanted = int64_t(device_limits().sm_count) * 8 / tiles, most = n / (16 * block.y);
    parts = std::clamp<int64_t>(std::min(wanted, most), 1, 256);
  }
};

template <class T, class Y>
void sum_columns(const T* x, Y* y, int64_t outer, int64_t n, int64_t inner, const Columns& by, int64_t parts,
                 void* stream) {
  auto* kernel = by.wide > 1 ? reduce_sum_columns<kPack<T>, T, Y> : reduce_sum_columns<1, T, Y>;
  const dim3 grid(grid_of_blocks(by.tiles), unsigned(parts));
  kernel<<<grid, by.block, 0, as_stream(stream)>>>(x, y, outer, n, inner,
                                                   div_up(std::max<int64_t>(n, 1), parts));
  check_launch("reduce_sum_columns", stream);
}

/// Whether a row is one sum, which then has a block.
bool by_rows(int64_t n, int64_t inner) { return inner == 1 && n >= 64; }

}  // namespace

template <class T>
int64_t reduce_scratch(const T* x, int64_t outer, int64_t n, int64_t inner) {
  if (by_rows(n, inner)) return 0;
  const int64_t parts = Columns(x, outer, n, inner).parts;
  return parts > 1 ? parts * outer * inner : 0;
}

template <class T, class Y>
void reduce_sum(const T* x, Y* y, int64_t outer, int64_t n, int64_t inner, float* scratch, void* stream) {
  const int64_t columns = outer * inner;
  if (columns == 0) return;
  if (by_rows(n, inner)) {
    reduce_sum_rows<<<grid_of_rows(outer), kThreads, 0, as_stream(stream)>>>(x, y, outer, n);
    return check_launch("reduce_sum_rows", stream);
  }
  const Columns by(x, outer, n, inner);
  if (by.parts == 1) return sum_columns(x, y, outer, n, inner, by, 1, stream);
  sum_columns(x, scratch, outer, n, inner, by, by.parts, stream);
  sum_columns(scratch, y, 1, by.parts, columns, Columns(scratch, 1, by.parts, columns), 1, stream);
}

template <class T>
void reduce_max(const T* x, T* y, int64_t* index, int64_t outer, int64_t n, int64_t inner, void* stream) {
  if (outer * inner == 0) return;
  reduce_max_columns<<<grid_for(outer * inner, kThreads), kThreads, 0, as_stream(stream)>>>(x, y, index,
                                                                                            outer, n, inner);
  check_launch("reduce_max_columns", stream);
}

template <class T>
void reduce_max_bwd(const T* gy, const int64_t* index, T* gx, int64_t outer, int64_t n, int64_t inner,
                    void* stream) {
  if (outer * n * inner == 0) return;
  reduce_max_bwd_kernel<<<grid_for(outer * n * inner, kThreads), kThreads, 0, as_stream(stream)>>>(
      gy, index, gx, outer, n, inner);
  check_launch("reduce_max_bwd", stream);
}

template int64_t reduce_scratch(const float*, int64_t, int64_t, int64_t);
template int64_t reduce_scratch(const bf16*, int64_t, int64_t, int64_t);
template void reduce_sum(const float*, float*, int64_t, int64_t, int64_t, float*, void*);
template void reduce_sum(const bf16*, bf16*, int64_t, int64_t, int64_t, float*, void*);
template void reduce_sum(const bf16*, float*, int64_t, int64_t, int64_t, float*, void*);
template void reduce_max(const float*, float*, int64_t*, int64_t, int64_t, int64_t, void*);
template void reduce_max(const bf16*, bf16*, int64_t*, int64_t, int64_t, int64_t, void*);
template void reduce_max_bwd(const float*, const int64_t*, float*, int64_t, int64_t, int64_t, void*);
template void reduce_max_bwd(const bf16*, const int64_t*, bf16*, int64_t, int64_t, int64_t, void*);

}  // namespace occam::kernels
