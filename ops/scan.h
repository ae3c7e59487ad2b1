#pragma once
// What scans along tokens share, in plain types.
#include <cstdint>

#include "core/rows.h"

namespace occam::kernels {

/// Segments that the tokens are cut into when there is too little else to do side by side. A first pass
/// leaves what every segment makes of a state of 0 and what it leaves of others; the second starts from what
/// those before it make of 0. Of a shorter sequence the last segments have no tokens and change nothing.
struct Segments {
  int64_t count = 1, length = 0;
};

/// `parallel` pieces of work are there without a cut, `wanted` fill the device; lengths are multiples of
/// `unit`.
inline Segments cut(int64_t tokens, int64_t parallel, int64_t wanted, int64_t unit) {
  Segments s{1, tokens};
  if (parallel <= 0 || 2 * parallel > wanted || tokens <= unit) return s;
  const int64_t count = (wanted + parallel - 1) / parallel, most = (tokens + unit - 1) / unit;
  s.length = (most + count - 1) / count * unit;
  s.count = (tokens + s.length - 1) / s.length;
  return s;
}

/// A scan of c channels with n states each, both directions.
struct ChannelScanShape : SequenceRows {
  int64_t c = 0, n = 0, w = 0;  // w: channels a head
  /// Element of y [b,t,h,2,w] for (row of tokens, direction, channel).
  OCCAM_HD int64_t y_at(int64_t row, int64_t direction, int64_t channel) const {
    return row * 2 * c + channel / w * 2 * w + direction * w + channel % w;
  }
  OCCAM_HD int64_t chains() const { return b * 2 * c; }
  bool is_empty() const { return b * t * c == 0; }
};

}  // namespace occam::kernels
