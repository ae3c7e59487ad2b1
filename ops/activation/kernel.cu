#include "ops/activation/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 256;

template <Activation F>
__device__ __forceinline__ float value(float x) {
  if constexpr (F == Activation::gelu)
    return gelu(x);
  else if constexpr (F == Activation::gelu_tanh)
    return gelu_tanh(x);
  else if constexpr (F == Activation::silu)
    return silu(x);
  else if constexpr (F == Activation::sigmoid)
    return sigmoid(x);
  else if constexpr (F == Activation::tanh)
    return tanh_(x);
  else if constexpr (F == Activation::relu)
    return x < 0 ? 0.0f : x;
  else if constexpr (F == Activation::exp)
    return exp_(x);
  else if constexpr (F == Activation::log)
    return log_(x);
  else
    return x > 0 ? x + 1 : exp_(x);
}

template <Activation F>
__device__ __forceinline__ float slope(float x) {
  if constexpr (F == Activation::gelu)
    return gelu_grad(x);
  else if constexpr (F == Activation::gelu_tanh)
    return gelu_tanh_grad(x);
  else if constexpr (F == Activation::silu)
    return silu_grad(x);
  else if constexpr (F == Activation::sigmoid)
    return sigmoid(x) * (1 - sigmoid(x));
  else if constexpr (F == Activation::tanh)
    return 1 - tanh_(x) * tanh_(x);
  else if constexpr (F == Activation::relu)
    return x > 0 ? 1.0f : 0.0f;
  else if constexpr (F == Activation::exp)
    return exp_(x);
  else if constexpr (F == Activation::log)
    return 1 / x;
  else
    return x > 0 ? 1.0f : exp_(x);
}

/// Packs of 16 bytes, then the tail; `Backward` multiplies the slope with gy.
template <class T, Activation F, bool Backward>
__global__ void activation_kernel(const T* x, const T* gy, T* out, int64_t count, int64_t packs) {
  OCCAM_GRID_LOOP(i, packs) {
    float v[kPack<T>], g[kPack<T>];
    load_acc(x + i * kPack<T>, v);
    if constexpr (Backward) load_acc(gy + i * kPack<T>, g);
#pragma unroll
    for (int k = 0; k < kPack<T>; ++k) v[k] = Backward ? g[k] * slope<F>(v[k]) : value<F>(v[k]);
    store_acc(out + i * kPack<T>, v);
  }
  int64_t done = packs * kPack<T>;
  OCCAM_GRID_LOOP(i, count - done) {
    float v = to_acc(x[done + i]);
    out[done + i] = from_acc<T>(Backward ? to_acc(gy[done + i]) * slope<F>(v) : value<F>(v));
  }
}

template <class T, Activation F, bool Backward>
void launch(const T* x, const T* gy, T* out, int64_t count, void* stream) {
  bool aligned = aligned16(x, out) && (!Backward || aligned16(gy));
  int64_t packs = aligned ? count / kPack<T> : 0;
  activation_kernel<T, F, Backward>
      <<<grid_for(packs + count - packs * kPack<T>, kThreads), kThreads, 0, as_stream(stream)>>>(
          x, gy, out, count, packs);
  check_launch(Backward ? "activation_bwd" : "activation_fwd", stream);
}

template <class T, bool Backward>
void choose(Activation f, const T* x, const T* gy, T* out, int64_t count, void* stream) {
  if (count == 0) return;
  switch (f) {
    case Activation::gelu:
      return launch<T, Activation::gelu, Backward>(x, gy, out, count, stream);
    case Activation::gelu_tanh:
      return launch<T, Activation::gelu_tanh, Backward>(x, gy, out, count, stream);
    case Activation::silu:
      return launch<T, Activation::silu, Backward>(x, gy, out, count, stream);
    case Activation::sigmoid:
      return launch<T, Activation::sigmoid, Backward>(x, gy, out, count, stream);
    case Activation::tanh:
      return launch<T, Activation::tanh, Backward>(x, gy, out, count, stream);
    case Activation::relu:
      return launch<T, Activation::relu, Backward>(x, gy, out, count, stream);
    case Activation::exp:
      return launch<T, Activation::exp, Backward>(x, gy, out, count, stream);
    case Activation::log:
      return launch<T, Activation::log, Backward>(x, gy, out, count, stream);
    case Activation::elu_plus_one:
      return launch<T, Activation::elu_plus_one, Backward>(x, gy, out, count, stream);
  }
}

}  // namespace

template <class T>
void activation_fwd(Activation f, const T* x, T* y, int64_t count, void* stream) {
  choose<T, false>(f, x, nullptr, y, count, stream);
}
template <class T>
void activation_bwd(Activation f, const T* x, const T* gy, T* gx, int64_t count, void* stream) {
  choose<T, true>(f, x, gy, gx, count, stream);
}

template void activation_fwd(Activation, const float*, float*, int64_t, void*);
template void activation_fwd(Activation, const bf16*, bf16*, int64_t, void*);
template void activation_bwd(Activation, const float*, const float*, float*, int64_t, void*);
template void activation_bwd(Activation, const bf16*, const bf16*, bf16*, int64_t, void*);

}  // namespace occam::kernels
