#include "ops/reduce/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"

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

/// A thread a column; blockIdx.y takes a part of the rows and writes its partial sum.
template <class T, class Y>
__global__ void reduce_sum_columns(const T* x, Y* y, int64_t outer, int64_t n, int64_t inner, int64_t chunk) {
  int64_t columns = outer * inner;
  int64_t first = int64_t(blockIdx.y) * chunk, last = first + chunk < n ? first + chunk : n;
  OCCAM_GRID_LOOP(c, columns) {
    const T* p = x + (c / inner) * n * inner + c % inner;
    float sum = 0;
    for (int64_t k = first; k < last; ++k) sum += to_acc(p[k * inner]);
    y[int64_t(blockIdx.y) * columns + c] = from_acc<Y>(sum);
  }
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

/// Parts the summed axis is cut into, so that a few long columns still fill the device.
int64_t parts_of(int64_t outer, int64_t n, int64_t inner) {
  if (inner == 1 && n >= 64) return 1;
  int64_t columns = outer * inner,
          wanted = int64_t(device_limits().sm_count) * 2048 / (columns > 0 ? columns : 1);
  int64_t parts = wanted < n / 32 ? wanted : n / 32;
  return parts < 1 ? 1 : parts > 1024 ? 1024 : parts;
}

}  // namespace

int64_t reduce_scratch(int64_t outer, int64_t n, int64_t inner) {
  int64_t parts = parts_of(outer, n, inner);
  return parts > 1 ? parts * outer * inner : 0;
}

template <class T, class Y>
void reduce_sum(const T* x, Y* y, int64_t outer, int64_t n, int64_t inner, float* scratch, void* stream) {
  int64_t columns = outer * inner;
  if (columns == 0) return;
  if (inner == 1 && n >= 64) {
    reduce_sum_rows<<<grid_of_rows(outer), kThreads, 0, as_stream(stream)>>>(x, y, outer, n);
    check_launch("reduce_sum_rows", stream);
    return;
  }
  int64_t parts = parts_of(outer, n, inner);
  unsigned grid = grid_for(columns, kThreads);
  if (parts == 1) {
    reduce_sum_columns<<<dim3(grid, 1), kThreads, 0, as_stream(stream)>>>(x, y, outer, n, inner,
                                                                          n > 0 ? n : 1);
  } else {
    int64_t chunk = div_up(n, parts);
    reduce_sum_columns<<<dim3(grid, unsigned(parts)), kThreads, 0, as_stream(stream)>>>(x, scratch, outer, n,
                                                                                        inner, chunk);
    check_launch("reduce_sum_columns", stream);
    reduce_sum_columns<<<dim3(grid, 1), kThreads, 0, as_stream(stream)>>>(scratch, y, 1, parts, columns,
                                                                          parts);
  }
  check_launch("reduce_sum_columns", stream);
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

template void reduce_sum(const float*, float*, int64_t, int64_t, int64_t, float*, void*);
template void reduce_sum(const bf16*, bf16*, int64_t, int64_t, int64_t, float*, void*);
template void reduce_sum(const bf16*, float*, int64_t, int64_t, int64_t, float*, void*);
template void reduce_max(const float*, float*, int64_t*, int64_t, int64_t, int64_t, void*);
template void reduce_max(const bf16*, bf16*, int64_t*, int64_t, int64_t, int64_t, void*);
template void reduce_max_bwd(const float*, const int64_t*, float*, int64_t, int64_t, int64_t, void*);
template void reduce_max_bwd(const bf16*, const int64_t*, bf16*, int64_t, int64_t, int64_t, void*);

}  // namespace occam::kernels
