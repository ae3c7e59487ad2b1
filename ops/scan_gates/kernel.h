#pragma once
#include "core/rows.h"

namespace occam::kernels {

/// Gates [b,t,2,h].
struct GateShape : SequenceRows {
  int64_t h = 0;
  int64_t count() const { return rows() * 2 * h; }
};

/// Gradients take the same struct: gscale and glog_decay in (null: none), gx, gz out [b,t,2,h]: gz is what
/// a_log gets of each element. A: f32 or f64.
template <class T, class A>
struct SoftplusGatesArgs {
  GateShape s;
  const T* x = nullptr;
  const A *bias = nullptr, *a_log = nullptr;  // [2,h]
  A *scale = nullptr, *log_decay = nullptr;
  const A *gscale = nullptr, *glog_decay = nullptr;
  A *gx = nullptr, *gz = nullptr;
};
template <class T>
void softplus_gates_fwd(const SoftplusGatesArgs<T, float>& a, void* stream);
template <class T>
void softplus_gates_bwd(const SoftplusGatesArgs<T, float>& a, void* stream);

template <class T>
void gate_maximum_fwd(const GateShape& s, const T* i, const T* f, float* m, void* stream);

template <class T, class A>
struct ExponentialGatesArgs {
  GateShape s;
  const T *i = nullptr, *f = nullptr;
  const A* m = nullptr;
  A *scale = nullptr, *log_decay = nullptr, *floor = nullptr;
  const A *gscale = nullptr, *glog_decay = nullptr;
  A *gi = nullptr, *gf = nullptr;
};
template <class T>
void exponential_gates_fwd(const ExponentialGatesArgs<T, float>& a, void* stream);
template <class T>
void exponential_gates_bwd(const ExponentialGatesArgs<T, float>& a, void* stream);

}  // namespace occam::kernels
