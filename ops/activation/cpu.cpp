#include <algorithm>

#include "core/vmath.h"
#include "ops/activation/kernel.h"

namespace occam::kernels {

namespace {

constexpr int64_t kChunk = 4096;

template <Activation F, class T>
inline T value(T x) {
  if constexpr (F == Activation::gelu) return gelu_of(x);
  if constexpr (F == Activation::gelu_tanh)
    return T(0.5) * x * (1 + tanh_of(T(0.79788456080286535588) * (x + T(0.044715) * x * x * x)));
  if constexpr (F == Activation::silu) return x * sigmoid_of(x);
  if constexpr (F == Activation::sigmoid) return sigmoid_of(x);
  if constexpr (F == Activation::tanh) return tanh_of(x);
  if constexpr (F == Activation::relu) return x < 0 ? T(0) : x;
  if constexpr (F == Activation::exp) return exp_of(x);
  if constexpr (F == Activation::log) return std::log(x);
  if constexpr (F == Activation::elu_plus_one) return x > 0 ? x + 1 : exp_of(x);
}

template <Activation F, class T>
inline T slope(T x) {
  if constexpr (F == Activation::gelu) return gelu_slope(x);
  if constexpr (F == Activation::gelu_tanh) {
    T t = tanh_of(T(0.79788456080286535588) * (x + T(0.044715) * x * x * x));
    T inner = T(0.79788456080286535588) * (1 + T(3 * 0.044715) * x * x);
    return T(0.5) * (1 + t) + T(0.5) * x * (1 - t * t) * inner;
  }
  if constexpr (F == Activation::silu) {
    T s = sigmoid_of(x);
    return s * (1 + x * (1 - s));
  }
  if constexpr (F == Activation::sigmoid) {
    T s = sigmoid_of(x);
    return s * (1 - s);
  }
  if constexpr (F == Activation::tanh) {
    T t = tanh_of(x);
    return 1 - t * t;
  }
  if constexpr (F == Activation::relu) return x > 0 ? T(1) : T(0);
  if constexpr (F == Activation::exp) return exp_of(x);
  if constexpr (F == Activation::log) return 1 / x;
  if constexpr (F == Activation::elu_plus_one) return x > 0 ? T(1) : exp_of(x);
}

// One loop a function and precision, named so that the compiler makes a version for each instruction set.
#define OCCAM_ACTIVATION_LOOPS(F, T)                                            \
  OCCAM_VECTORIZED void F##_fwd(const T* x, T* y, int64_t n) {                  \
    for (int64_t i = 0; i < n; ++i) y[i] = value<Activation::F>(x[i]);          \
  }                                                                             \
  OCCAM_VECTORIZED void F##_bwd(const T* x, const T* gy, T* gx, int64_t n) {    \
    for (int64_t i = 0; i < n; ++i) gx[i] = gy[i] * slope<Activation::F>(x[i]); \
  }
#define OCCAM_EACH_ACTIVATION(M, T) \
  M(gelu, T)                        \
  M(gelu_tanh, T) M(silu, T) M(sigmoid, T) M(tanh, T) M(relu, T) M(exp, T) M(log, T) M(elu_plus_one, T)
OCCAM_EACH_ACTIVATION(OCCAM_ACTIVATION_LOOPS, float)
OCCAM_EACH_ACTIVATION(OCCAM_ACTIVATION_LOOPS, double)

template <class Loop>
void by_chunks(int64_t count, Loop loop) {
  int64_t chunks = (count + kChunk - 1) / kChunk;
#pragma omp parallel for if (chunks > 2)
  for (int64_t c = 0; c < chunks; ++c) loop(c * kChunk, std::min(kChunk, count - c * kChunk));
}

}  // namespace

template <class T>
void activation_fwd_cpu(Activation f, const T* x, T* y, int64_t count) {
  by_chunks(count, [=](int64_t at, int64_t n) {
    switch (f) {
#define OCCAM_CASE(F, T2) \
  case Activation::F:     \
    return F##_fwd(x + at, y + at, n);
      OCCAM_EACH_ACTIVATION(OCCAM_CASE, T)
#undef OCCAM_CASE
    }
  });
}

template <class T>
void activation_bwd_cpu(Activation f, const T* x, const T* gy, T* gx, int64_t count) {
  by_chunks(count, [=](int64_t at, int64_t n) {
    switch (f) {
#define OCCAM_CASE(F, T2) \
  case Activation::F:     \
    return F##_bwd(x + at, gy + at, gx + at, n);
      OCCAM_EACH_ACTIVATION(OCCAM_CASE, T)
#undef OCCAM_CASE
    }
  });
}

template void activation_fwd_cpu(Activation, const float*, float*, int64_t);
template void activation_fwd_cpu(Activation, const double*, double*, int64_t);
template void activation_bwd_cpu(Activation, const float*, const float*, float*, int64_t);
template void activation_bwd_cpu(Activation, const double*, const double*, double*, int64_t);

}  // namespace occam::kernels
