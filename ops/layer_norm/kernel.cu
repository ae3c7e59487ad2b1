#include "ops/layer_norm/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 32, kRows = 8;  // block of the parameter gradients

/// A block a row. The row is read again for the variance: it is in L1 by then, and the two-pass form does not
/// cancel.
template <class T>
__global__ void layer_norm_fwd_row(const T* x, const T* weight, const T* bias, T* y, float* mean, float* rstd,
                                   int64_t rows, int64_t c, float eps) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* in = x + row * c;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < c; i += blockDim.x) sum += to_acc(in[i]);
    float m = block_sum(sum) / float(c), squares = 0;
    for (int64_t i = threadIdx.x; i < c; i += blockDim.x) {
      float d = to_acc(in[i]) - m;
      squares += d * d;
    }
    float r = 1 / sqrtf(block_sum(squares) / float(c) + eps);
    for (int64_t i = threadIdx.x; i < c; i += blockDim.x)
      y[row * c + i] = from_acc<T>((to_acc(in[i]) - m) * r * to_acc(weight[i]) + to_acc(bias[i]));
    if (threadIdx.x == 0) mean[row] = m, rstd[row] = r;
  }
}

template <class T>
__global__ void layer_norm_bwd_row(const T* x, const T* weight, const T* gy, const float* mean,
                                   const float* rstd, T* gx, int64_t rows, int64_t c) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float m = mean[row], r = rstd[row], sum_g = 0, sum_gx = 0;
    for (int64_t i = threadIdx.x; i < c; i += blockDim.x) {
      float g = to_acc(gy[row * c + i]) * to_acc(weight[i]);
      sum_g += g;
      sum_gx += g * (to_acc(x[row * c + i]) - m) * r;
    }
    Pair<float> sums = block_sum2(sum_g, sum_gx);
    float a = sums.first / float(c), b = sums.second / float(c);
    for (int64_t i = threadIdx.x; i < c; i += blockDim.x) {
      float g = to_acc(gy[row * c + i]) * to_acc(weight[i]), hat = (to_acc(x[row * c + i]) - m) * r;
      gx[row * c + i] = from_acc<T>(r * (g - a - hat * b));
    }
  }
}

/// Partial column sums: blockIdx.y takes a part of the rows; lanes are columns, so loads are coalesced.
template <class T>
__global__ void layer_norm_bwd_partial(const T* x, const T* gy, const float* mean, const float* rstd,
                                       float* scratch, int64_t rows, int64_t c, int64_t chunk) {
  __shared__ float weight_sum[kRows][kColumns], bias_sum[kRows][kColumns];
  int64_t column = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  int64_t first = int64_t(blockIdx.y) * chunk, last = first + chunk < rows ? first + chunk : rows;
  float w = 0, b = 0;
  if (column < c)
    for (int64_t row = first + threadIdx.y; row < last; row += kRows) {
      float g = to_acc(gy[row * c + column]);
      w += g * (to_acc(x[row * c + column]) - mean[row]) * rstd[row];
      b += g;
    }
  weight_sum[threadIdx.y][threadIdx.x] = w;
  bias_sum[threadIdx.y][threadIdx.x] = b;
  __syncthreads();
  if (threadIdx.y != 0 || column >= c) return;
  for (int i = 1; i < kRows; ++i) w += weight_sum[i][threadIdx.x], b += bias_sum[i][threadIdx.x];
  scratch[(int64_t(blockIdx.y) * 2) * c + column] = w;
  scratch[(int64_t(blockIdx.y) * 2 + 1) * c + column] = b;
}

__global__ void layer_norm_bwd_final(const float* scratch, float* gweight, float* gbias, int64_t c,
                                     int64_t parts) {
  OCCAM_GRID_LOOP(i, 2 * c) {
    float sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += scratch[p * 2 * c + i];
    (i < c ? gweight[i] : gbias[i - c]) = sum;
  }
}

int64_t parts_of(int64_t rows, int64_t c) {
  int64_t wanted = int64_t(device_limits().sm_count) * 4 / div_up<int64_t>(c, kColumns);
  int64_t most = div_up<int64_t>(rows, 4 * kRows);
  int64_t parts = wanted < most ? wanted : most;
  return parts < 1 ? 1 : parts;
}

}  // namespace

template <class T>
void layer_norm_fwd(const T* x, const T* weight, const T* bias, T* y, float* mean, float* rstd, int64_t rows,
                    int64_t c, float eps, void* stream) {
  if (rows * c == 0) return;
  layer_norm_fwd_row<<<grid_of_rows(rows), kThreads, 0, as_stream(stream)>>>(x, weight, bias, y, mean, rstd,
                                                                             rows, c, eps);
  check_launch("layer_norm_fwd_row", stream);
}

template <class T>
void layer_norm_bwd_x(const T* x, const T* weight, const T* gy, const float* mean, const float* rstd, T* gx,
                      int64_t rows, int64_t c, void* stream) {
  if (rows * c == 0) return;
  layer_norm_bwd_row<<<grid_of_rows(rows), kThreads, 0, as_stream(stream)>>>(x, weight, gy, mean, rstd, gx,
                                                                             rows, c);
  check_launch("layer_norm_bwd_row", stream);
}

int64_t layer_norm_scratch(int64_t rows, int64_t c) { return parts_of(rows, c) * 2 * c; }

template <class T>
void layer_norm_bwd_params(const T* x, const T* gy, const float* mean, const float* rstd, float* gweight,
                           float* gbias, int64_t rows, int64_t c, float* scratch, void* stream) {
  if (c == 0) return;
  int64_t parts = parts_of(rows, c), chunk = div_up(rows > 0 ? rows : 1, parts);
  layer_norm_bwd_partial<<<dim3(unsigned(div_up<int64_t>(c, kColumns)), unsigned(parts)),
                           dim3(kColumns, kRows), 0, as_stream(stream)>>>(x, gy, mean, rstd, scratch, rows, c,
                                                                          chunk);
  check_launch("layer_norm_bwd_partial", stream);
  layer_norm_bwd_final<<<grid_for(2 * c, kThreads), kThreads, 0, as_stream(stream)>>>(scratch, gweight, gbias,
                                                                                      c, parts);
  check_launch("layer_norm_bwd_final", stream);
}

#define OCCAM_INSTANTIATE(T)                                                                              \
  template void layer_norm_fwd(const T*, const T*, const T*, T*, float*, float*, int64_t, int64_t, float, \
                               void*);                                                                    \
  template void layer_norm_bwd_x(const T*, const T*, const T*, const float*, const float*, T*, int64_t,   \
                                 int64_t, void*);                                                         \
  template void layer_norm_bwd_params(const T*, const T*, const float*, const float*, float*, float*,     \
                                      int64_t, int64_t, float*, void*)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(bf16);

}  // namespace occam::kernels
