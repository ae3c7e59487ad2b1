#pragma once
#include <cstdint>

#include "core/half.h"

namespace occam::kernels {

struct DwconvShape {
  int64_t b = 0, gh = 0, gw = 0, prefix = 0, c = 0, kh = 0, kw = 0;
  OCCAM_HD int64_t patches() const { return gh * gw; }
  OCCAM_HD int64_t tokens() const { return prefix + patches(); }
  OCCAM_HD int64_t taps() const { return kh * kw; }
};

/// y of every token; mean [b,c] of x over the patches is kept for backward.
template <class T, class M>
struct DwconvForward {
  DwconvShape s;
  const T *x = nullptr, *w = nullptr, *prefix_w = nullptr, *bias = nullptr;
  T* y = nullptr;
  M* mean = nullptr;
  M* scratch = nullptr;  // on a GPU, dwconv_scratch() floats
};

/// Gradients; what is null is not wanted. gw [kh,kw,c], gprefix [2,c], gbias [c] come together.
template <class T, class M>
struct DwconvBackward {
  DwconvShape s;
  const T *x = nullptr, *w = nullptr, *prefix_w = nullptr, *gy = nullptr;
  const M* mean = nullptr;
  T* gx = nullptr;
  M *gw = nullptr, *gprefix = nullptr, *gbias = nullptr;
  M* scratch = nullptr;  // on a GPU, dwconv_scratch() floats
};

template <class T>
void dwconv_fwd_cpu(const DwconvForward<T, T>& a);
template <class T>
void dwconv_bwd_cpu(const DwconvBackward<T, T>& a);

template <class T>
void dwconv_fwd(const DwconvForward<T, float>& a, void* stream);
template <class T>
void dwconv_bwd(const DwconvBackward<T, float>& a, void* stream);
int64_t dwconv_scratch(const DwconvShape& s, bool backward);

}  // namespace occam::kernels
