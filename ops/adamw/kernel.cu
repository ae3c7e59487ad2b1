#include "ops/adamw/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 256;
// Places in StepScalars.
constexpr int kRate = 0, kUpdates = 1, kNorm = 2, kSkip = 3;

__global__ void norm_partial(const UpdateChunk* chunks, float* partial) {
  UpdateChunk c = chunks[blockIdx.x];
  float sum = 0;
  const int64_t whole = aligned16(c.grad) ? c.count / 4 * 4 : 0;
  for (int64_t i = 4 * int64_t(threadIdx.x); i < whole; i += 4 * int64_t(blockDim.x)) {
    float g[4];
    load_acc(c.grad + i, g);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += g[k] * g[k];
  }
  for (int64_t i = whole + threadIdx.x; i < c.count; i += blockDim.x) sum += c.grad[i] * c.grad[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void norm_final(const float* partial, int64_t count, float* scalars) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += double(partial[i]);
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  bool finite = isfinite(sum);
  scalars[kNorm] = float(sqrt(sum));
  scalars[kSkip] = finite ? 0.0f : 1.0f;
  if (finite) scalars[kUpdates] += 1;
}

__global__ void adamw_kernel(const UpdateChunk* chunks, const float* scalars, AdamWNumbers<float> numbers,
                             float clip) {
  if (scalars[kSkip] != 0) return;
  UpdateChunk c = chunks[blockIdx.x];
  float lr = scalars[kRate], factor = clip_factor(scalars[kNorm], clip);
  float correction1 = bias_correction(numbers.log1, scalars[kUpdates]);
  float correction2 = bias_correction(numbers.log2, scalars[kUpdates]);
  // Four elements at a time where the chunk allows it: more bytes under way.
  const bool quads = aligned16(c.param, c.first, c.second, c.grad, c.shadow);
  const int64_t whole = quads ? c.count / 4 * 4 : 0;
  for (int64_t i = 4 * int64_t(threadIdx.x); i < whole; i += 4 * int64_t(blockDim.x)) {
    float p[4], m[4], v[4], g[4];
    load_acc(c.param + i, p);
    load_acc(c.first + i, m);
    load_acc(c.second + i, v);
    load_acc(c.grad + i, g);
#pragma unroll
    for (int k = 0; k < 4; ++k)
      adamw_element(p[k], m[k], v[k], g[k] * factor, lr, c.weight_decay, numbers, correction1, correction2);
    store_acc(c.param + i, p);
    store_acc(c.first + i, m);
    store_acc(c.second + i, v);
    if (c.shadow) *reinterpret_cast<uint2*>(c.shadow + i) = {pack_bf16(p[0], p[1]), pack_bf16(p[2], p[3])};
  }
  for (int64_t i = whole + threadIdx.x; i < c.count; i += blockDim.x) {
    float p = c.param[i], m = c.first[i], v = c.second[i];
    adamw_element(p, m, v, c.grad[i] * factor, lr, c.weight_decay, numbers, correction1, correction2);
    c.param[i] = p, c.first[i] = m, c.second[i] = v;
    if (c.shadow) c.shadow[i] = bf16(p);
  }
}

__global__ void sgd_kernel(const UpdateChunk* chunks, const float* scalars, float momentum, float clip) {
  if (scalars[kSkip] != 0) return;
  UpdateChunk c = chunks[blockIdx.x];
  float lr = scalars[kRate], factor = clip_factor(scalars[kNorm], clip);
  for (int64_t i = threadIdx.x; i < c.count; i += blockDim.x) {
    float p = c.param[i], buffer = c.first[i];
    sgd_element(p, buffer, c.grad[i] * factor, lr, c.weight_decay, momentum);
    c.param[i] = p, c.first[i] = buffer;
    if (c.shadow) c.shadow[i] = bf16(p);
  }
}

__global__ void ema_kernel(const UpdateChunk* chunks, float decay, float rest) {
  UpdateChunk c = chunks[blockIdx.x];
  for (int64_t i = threadIdx.x; i < c.count; i += blockDim.x)
    c.param[i] = decay * c.param[i] + rest * c.grad[i];
}

}  // namespace

void gradient_norm(const UpdateChunk* chunks, int64_t count, float* partial, float* scalars, void* stream) {
  if (count > 0) norm_partial<<<grid_of_rows(count), kThreads, 0, as_stream(stream)>>>(chunks, partial);
  check_launch("gradient_norm", stream);
  norm_final<<<1, kThreads, 0, as_stream(stream)>>>(partial, count, scalars);
  check_launch("gradient_norm", stream);
}

void adamw(const UpdateChunk* chunks, int64_t count, const float* scalars, const AdamWNumbers<float>& numbers,
           float clip, void* stream) {
  if (count == 0) return;
  adamw_kernel<<<grid_of_rows(count), kThreads, 0, as_stream(stream)>>>(chunks, scalars, numbers, clip);
  check_launch("adamw", stream);
}

void sgd(const UpdateChunk* chunks, int64_t count, const float* scalars, float momentum, float clip,
         void* stream) {
  if (count == 0) return;
  sgd_kernel<<<grid_of_rows(count), kThreads, 0, as_stream(stream)>>>(chunks, scalars, momentum, clip);
  check_launch("sgd", stream);
}

void ema(const UpdateChunk* chunks, int64_t count, float decay, float rest, void* stream) {
  if (count == 0) return;
  ema_kernel<<<grid_of_rows(count), kThreads, 0, as_stream(stream)>>>(chunks, decay, rest);
  check_launch("ema", stream);
}

}  // namespace occam::kernels
