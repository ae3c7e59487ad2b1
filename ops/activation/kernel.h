#pragma once
#include <cstdint>

namespace occam::kernels {

enum class Activation : uint8_t { gelu, gelu_tanh, silu, sigmoid, tanh, relu, exp, log, elu_plus_one };

/// y = f(x); x and y may be the same memory.
template <class T>
void activation_fwd(Activation f, const T* x, T* y, int64_t count, void* stream);
/// gx = gy f'(x); gy and gx may be the same memory.
template <class T>
void activation_bwd(Activation f, const T* x, const T* gy, T* gx, int64_t count, void* stream);

// The same on the CPU, in f32 or f64.
template <class T>
void activation_fwd_cpu(Activation f, const T* x, T* y, int64_t count);
template <class T>
void activation_bwd_cpu(Activation f, const T* x, const T* gy, T* gx, int64_t count);

}  // namespace occam::kernels
