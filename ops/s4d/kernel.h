#pragma once
#include "ops/scan.h"

namespace occam::kernels {

template <class T>
struct S4dParameters {
  const T *log_dt = nullptr, *a_log = nullptr, *a_im = nullptr, *out = nullptr;
};
template <class T>
struct S4dParameterGrads {
  T *log_dt = nullptr, *a_log = nullptr, *a_im = nullptr, *out = nullptr;
};

/// With coefficients [2,c,n,4]: real and imaginary part of exp(dt A), then of 2 out (exp(dt A) - 1) / A.
/// Either u [b,t,c] -> y [b,t,h,2,w], or backwards gy (as y) -> gu [2,b,t,c], a part for each direction.
template <class T, class A>
struct S4dScan {
  ChannelScanShape s;
  const T *u = nullptr, *skip = nullptr;
  const A* coefficients = nullptr;
  T* y = nullptr;
  const T* gy = nullptr;
  A* gu = nullptr;
  OCCAM_HD bool is_backward() const { return gy != nullptr; }
};

/// Sums over tokens [parts][2,c,n,4]: of gy x (complex), of gy dx / d exp(dt A); and of gy u, [parts][2,c].
template <class T, class A>
struct S4dSums {
  ChannelScanShape s;
  const T *u = nullptr, *gy = nullptr;
  const A* coefficients = nullptr;
  A *states = nullptr, *skip = nullptr;
};

template <class T>
void s4d_coefficients_cpu(const ChannelScanShape& s, const S4dParameters<T>& p, T* coefficients);
/// Gradients of the parameters from S4dSums::states, added up over parts.
template <class T>
void s4d_parameter_grads_cpu(const ChannelScanShape& s, const S4dParameters<T>& p, const T* sums,
                             const S4dParameterGrads<T>& g);
template <class T>
void s4d_scan_cpu(const S4dScan<T, T>& a);
/// Parts: sequences.
template <class T>
void s4d_sums_cpu(const S4dSums<T, T>& a);

template <class T>
void s4d_coefficients(const ChannelScanShape& s, const S4dParameters<T>& p, float* coefficients,
                      void* stream);
template <class T>
void s4d_parameter_grads(const ChannelScanShape& s, const S4dParameters<T>& p, const float* sums,
                         const S4dParameterGrads<float>& g, void* stream);
/// Floats of workspace, and parts of the sums.
int64_t s4d_workspace(const ChannelScanShape& s);
int64_t s4d_parts(const ChannelScanShape& s);
template <class T>
void s4d_scan(const S4dScan<T, float>& a, float* workspace, void* stream);
template <class T>
void s4d_sums(const S4dSums<T, float>& a, float* workspace, void* stream);

}  // namespace occam::kernels
