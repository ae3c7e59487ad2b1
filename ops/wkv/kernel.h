#pragma once
#include "core/rows.h"

namespace occam::kernels {

struct WkvShape : SequenceRows {
  int64_t c = 0;
};

/// Kept for backward (null: not wanted): log_sum [b,t,c], the logarithm of y's denominator, natural on a CPU,
/// base 2 on a GPU; and wide_y, y before it is rounded to T, where these differ.
template <class T, class M>
struct WkvForward {
  WkvShape s;
  const T *k = nullptr, *v = nullptr, *w = nullptr, *u = nullptr;
  T* y = nullptr;
  M *log_sum = nullptr, *wide_y = nullptr;
  M* scratch = nullptr;  // on a GPU, wkv_scratch() floats
};
/// gw and gu [c].
template <class T, class M>
struct WkvBackward {
  WkvShape s;
  const T *k = nullptr, *v = nullptr, *w = nullptr, *u = nullptr, *gy = nullptr;
  const M *y = nullptr, *log_sum = nullptr;
  T *gk = nullptr, *gv = nullptr;
  M *gw = nullptr, *gu = nullptr;
  M* scratch = nullptr;
};

template <class T>
void wkv_fwd_cpu(const WkvForward<T, T>& a);
template <class T>
void wkv_bwd_cpu(const WkvBackward<T, T>& a);

template <class T>
void wkv_fwd(const WkvForward<T, float>& a, void* stream);
template <class T>
void wkv_bwd(const WkvBackward<T, float>& a, void* stream);
/// Floats that `scratch`, which may be unset, has to hold.
template <class T>
int64_t wkv_scratch(const WkvForward<T, float>& a);
template <class T>
int64_t wkv_scratch(const WkvBackward<T, float>& a);

}  // namespace occam::kernels
