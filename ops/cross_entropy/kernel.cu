#include "ops/cross_entropy/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

/// log sum exp of a row divided by the temperature.
template <class T>
__device__ float row_lse(const T* x, int64_t k, float inverse_temperature) {
  Pair<float> state{-infinity_<float>(), 0.0f};
  for (int64_t i = threadIdx.x; i < k; i += blockDim.x)
    state = OnlineSoftmaxOp{}(state, Pair<float>{to_acc(x[i]) * inverse_temperature, 1.0f});
  state = block_online_softmax(state);
  return state.first + logf(state.second);
}

template <class T>
__device__ float target_of(const SoftTarget<T, float>& t, int64_t row, int64_t i, int64_t k,
                           float teacher_lse) {
  if (t.labels) {
    int64_t label = t.labels[row];
    float q = t.smoothing / float(k) + (i == label ? 1 - t.smoothing : 0.0f);
    return label < 0 || label >= k ? nanf("") : q;
  }
  if (t.targets) return t.targets[row * k + i];
  return expf(to_acc(t.teacher[row * k + i]) / t.temperature - teacher_lse);
}

template <class T>
__global__ void cross_entropy_fwd_row(const T* x, SoftTarget<T, float> t, float* loss, float* lse,
                                      float* teacher_lse, int64_t rows, int64_t k) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float inverse = 1 / t.temperature, normal = row_lse(x + row * k, k, inverse);
    float teacher = t.teacher ? row_lse(t.teacher + row * k, k, inverse) : 0.0f, sum = 0;
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
      float q = target_of(t, row, i, k, teacher), log_p = to_acc(x[row * k + i]) * inverse - normal;
      if (q != 0)
        sum += q * ((t.teacher ? to_acc(t.teacher[row * k + i]) * inverse - teacher : 0.0f) - log_p);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
      loss[row] = sum;
      lse[row] = normal;
      if (t.teacher) teacher_lse[row] = teacher;
    }
  }
}

template <class T>
__global__ void cross_entropy_bwd_row(const T* x, SoftTarget<T, float> t, const float* lse,
                                      const float* teacher_lse, const float* gy, float scale, T* gx,
                                      int64_t rows, int64_t k) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float teacher = t.teacher ? teacher_lse[row] : 0.0f, mass = 1;
    if (t.targets) {
      float sum = 0;
      for (int64_t i = threadIdx.x; i < k; i += blockDim.x) sum += t.targets[row * k + i];
      mass = block_sum(sum);
    }
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
      float p = expf(to_acc(x[row * k + i]) / t.temperature - lse[row]);
      gx[row * k + i] = from_acc<T>(*gy * scale * (mass * p - target_of(t, row, i, k, teacher)));
    }
  }
}

}  // namespace

template <class T>
void cross_entropy_fwd(const T* x, SoftTarget<T, float> target, float* loss, float* lse, float* teacher_lse,
                       int64_t rows, int64_t k, void* stream) {
  if (rows == 0) return;
  cross_entropy_fwd_row<<<grid_of_rows(rows), kThreads, 0, as_stream(stream)>>>(x, target, loss, lse,
                                                                                teacher_lse, rows, k);
  check_launch("cross_entropy_fwd_row", stream);
}

template <class T>
void cross_entropy_bwd(const T* x, SoftTarget<T, float> target, const float* lse, const float* teacher_lse,
                       const float* gy, float scale, T* gx, int64_t rows, int64_t k, void* stream) {
  if (rows == 0) return;
  cross_entropy_bwd_row<<<grid_of_rows(rows), kThreads, 0, as_stream(stream)>>>(x, target, lse, teacher_lse,
                                                                                gy, scale, gx, rows, k);
  check_launch("cross_entropy_bwd_row", stream);
}

#define OCCAM_INSTANTIATE(T)                                                                                \
  template void cross_entropy_fwd(const T*, SoftTarget<T, float>, float*, float*, float*, int64_t, int64_t, \
                                  void*);                                                                   \
  template void cross_entropy_bwd(const T*, SoftTarget<T, float>, const float*, const float*, const float*, \
                                  float, T*, int64_t, int64_t, void*)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(bf16);

}  // namespace occam::kernels
