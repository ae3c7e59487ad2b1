#pragma once
#include <cstdint>

namespace occam::kernels {

/// x, y and gx are packed [b t, a, r, c]; gate [b,t,r,a,c] has strides (b, t, r), ggate is packed.
template <class T>
struct RmsNormArgs {
  int64_t b = 0, t = 0, a = 0, r = 0, c = 0;
  double eps = 0;
  const T *x = nullptr, *weight = nullptr, *gate = nullptr;  // gate may be null
  int64_t gate_b = 0, gate_t = 0, gate_r = 0;
  float* rstd = nullptr;  // [b,t,r]: out forward, in backward
  T* y = nullptr;
  const T* gy = nullptr;
  T *gx = nullptr, *ggate = nullptr;  // null: no gradient is wanted
  float* partial = nullptr;           // [parts, r,a,c], to be summed; null: the weight takes no gradient
};

/// Parts of `partial`, which may be unset.
template <class T>
int64_t rms_norm_parts(const RmsNormArgs<T>& a);
template <class T>
void rms_norm_fwd(const RmsNormArgs<T>& a, void* stream);
template <class T>
void rms_norm_bwd(const RmsNormArgs<T>& a, void* stream);

}  // namespace occam::kernels
