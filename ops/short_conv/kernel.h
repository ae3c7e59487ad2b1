#pragma once
#include "core/rows.h"

namespace occam::kernels {

inline constexpr int64_t kMostTaps = 8;

struct ShortConvShape : SequenceRows {
  int64_t c = 0, taps = 0, directions = 2;
  /// Tokens behind it that a sum meets: in one direction its taps lie round the token.
  OCCAM_HD int64_t ahead() const { return directions == 1 ? taps / 2 : 0; }
};

/// x has strides (b, t, direction) in elements, that of b without offsets only, and a contiguous last axis; y
/// and gradients are packed.
template <class T>
struct ShortConvForward {
  ShortConvShape s;
  const T* x = nullptr;
  int64_t stride_b = 0, stride_t = 0, stride_r = 0;
  const T *w = nullptr, *bias = nullptr;
  T* y = nullptr;
  /// Offset in x of token 0 of a sequence.
  OCCAM_HD int64_t x_at(int64_t sequence) const {
    return s.offsets == nullptr ? sequence * stride_b : s.begin(sequence) * stride_t;
  }
};
template <class T>
struct ShortConvBackward {
  ShortConvForward<T> forward;  // y: null
  const T* gy = nullptr;
  T* gx = nullptr;  // null: x takes no gradient
  /// [parts, directions, c, taps + 1]: gradients of w and, behind them, of bias, to be summed over the parts;
  /// null: they take none.
  float* partial = nullptr;
};

/// In how many parts the backward kernel sums; `partial` may be unset.
template <class T>
int64_t short_conv_parts(const ShortConvBackward<T>& a);
template <class T>
void short_conv_fwd(const ShortConvForward<T>& a, void* stream);
template <class T>
void short_conv_bwd(const ShortConvBackward<T>& a, void* stream);

}  // namespace occam::kernels
