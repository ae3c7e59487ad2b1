#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "ops/scan_gates/gates.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 256;

template <class Args>
__global__ void softplus_gates_fwd_kernel(Args a, int64_t count) {
  OCCAM_GRID_LOOP(n, count) softplus_gates_at(a, n);
}
template <class Args>
__global__ void softplus_gates_bwd_kernel(Args a, int64_t count) {
  OCCAM_GRID_LOOP(n, count) softplus_gates_back_at(a, n);
}
template <class Args>
__global__ void exponential_gates_fwd_kernel(Args a, int64_t count) {
  OCCAM_GRID_LOOP(n, count) exponential_gates_at(a, n);
}
template <class Args>
__global__ void exponential_gates_bwd_kernel(Args a, int64_t count) {
  OCCAM_GRID_LOOP(n, count) exponential_gates_back_at(a, n);
}

/// A warp for each (sequence, direction, head), 32 tokens at a time. A token maps m to max(m + keep, least),
/// and maps compose: (keep, least) after (keep', least') is (keep + keep', max(least' + keep, least)).
template <class T>
__global__ void gate_maximum_kernel(GateShape s, const T* i, const T* f, float* m) {
  const int64_t lines = s.b * 2 * s.h, warps = int64_t(gridDim.x) * (blockDim.x / 32);
  const int lane = int(threadIdx.x) % 32;
  for (int64_t line = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32; line < lines; line += warps) {
    const int64_t which = line % (2 * s.h), sequence = line / (2 * s.h);
    const int64_t begin = s.begin(sequence), length = s.length(sequence);
    float before = 0;
    for (int64_t first = 0; first < length; first += 32) {
      const int64_t step = first + lane;
      const int64_t token = which < s.h ? step : length - 1 - step;
      const int64_t at = (begin + token) * 2 * s.h + which;
      float keep = 0, least = 0;
      if (step < length) keep = -softplus_of(-to_acc(f[at])), least = max_(to_acc(i[at]), 0.0f);
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const float keep_before = __shfl_up_sync(0xffffffffu, keep, d),
                    least_before = __shfl_up_sync(0xffffffffu, least, d);
        if (lane >= d) least = max_(least_before + keep, least), keep += keep_before;
      }
      const float now = max_(before + keep, least);
      if (step < length) m[at] = now;
      before = __shfl_sync(0xffffffffu, now, 31);
    }
  }
}

template <class Args>
void launch(void (*kernel)(Args, int64_t), const char* name, const Args& a, void* stream) {
  const int64_t count = a.s.count();
  kernel<<<grid_for(count, kThreads), kThreads, 0, as_stream(stream)>>>(a, count);
  check_launch(name, stream);
}

}  // namespace

template <class T>
void softplus_gates_fwd(const SoftplusGatesArgs<T, float>& a, void* stream) {
  launch(softplus_gates_fwd_kernel<SoftplusGatesArgs<T, float>>, "softplus_gates_fwd", a, stream);
}
template <class T>
void softplus_gates_bwd(const SoftplusGatesArgs<T, float>& a, void* stream) {
  launch(softplus_gates_bwd_kernel<SoftplusGatesArgs<T, float>>, "softplus_gates_bwd", a, stream);
}
template <class T>
void exponential_gates_fwd(const ExponentialGatesArgs<T, float>& a, void* stream) {
  launch(exponential_gates_fwd_kernel<ExponentialGatesArgs<T, float>>, "exponential_gates_fwd", a, stream);
}
template <class T>
void exponential_gates_bwd(const ExponentialGatesArgs<T, float>& a, void* stream) {
  launch(exponential_gates_bwd_kernel<ExponentialGatesArgs<T, float>>, "exponential_gates_bwd", a, stream);
}
template <class T>
void gate_maximum_fwd(const GateShape& s, const T* i, const T* f, float* m, void* stream) {
  gate_maximum_kernel<T>
      <<<grid_for(s.b * 2 * s.h * 32, kThreads), kThreads, 0, as_stream(stream)>>>(s, i, f, m);
  check_launch("gate_maximum", stream);
}

#define OCCAM_INSTANTIATE(T)                                                         \
  template void softplus_gates_fwd(const SoftplusGatesArgs<T, float>&, void*);       \
  template void softplus_gates_bwd(const SoftplusGatesArgs<T, float>&, void*);       \
  template void exponential_gates_fwd(const ExponentialGatesArgs<T, float>&, void*); \
  template void exponential_gates_bwd(const ExponentialGatesArgs<T, float>&, void*); \
  template void gate_maximum_fwd(const GateShape&, const T*, const T*, float*, void*)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(bf16);
#undef OCCAM_INSTANTIATE

}  // namespace occam::kernels
