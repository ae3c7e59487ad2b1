#include "ops/log_softmax/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

/// A block a row: maximum and sum in one pass, the second pass finds the row in L1.
template <class T>
__global__ void __launch_bounds__(kThreads) log_softmax_fwd_row(const T* x, T* y, int64_t rows, int64_t n) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* in = x + row * n;
    Pair<float> state{-infinity_<float>(), 0.0f};
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
      state = OnlineSoftmaxOp{}(state, Pair<float>{to_acc(in[i]), 1.0f});
    state = block_online_softmax(state);
    float largest = state.first, log_sum = log_(state.second);
    // In this order: x - max is exact where they are close, the sum of both rounds at the size of max.
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
      y[row * n + i] = from_acc<T>(to_acc(in[i]) - largest - log_sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    log_softmax_bwd_row(const T* y, const T* gy, T* gx, int64_t rows, int64_t n) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += to_acc(gy[row * n + i]);
    sum = block_sum(sum);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
      gx[row * n + i] = from_acc<T>(to_acc(gy[row * n + i]) - exp_(to_acc(y[row * n + i])) * sum);
  }
}

}  // namespace

template <class T>
void log_softmax_fwd(const T* x, T* y, int64_t rows, int64_t n, void* stream) {
  if (rows * n == 0) return;
  log_softmax_fwd_row<<<grid_of_rows(rows), kThreads, 0, as_stream(stream)>>>(x, y, rows, n);
  check_launch("log_softmax_fwd_row", stream);
}

template <class T>
void log_softmax_bwd(const T* y, const T* gy, T* gx, int64_t rows, int64_t n, void* stream) {
  if (rows * n == 0) return;
  log_softmax_bwd_row<<<grid_of_rows(rows), kThreads, 0, as_stream(stream)>>>(y, gy, gx, rows, n);
  check_launch("log_softmax_bwd_row", stream);
}

#define OCCAM_INSTANTIATE(T)                                            \
  template void log_softmax_fwd(const T*, T*, int64_t, int64_t, void*); \
  template void log_softmax_bwd(const T*, const T*, T*, int64_t, int64_t, void*)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(bf16);

}  // namespace occam::kernels
