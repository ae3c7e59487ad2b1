#pragma once
// Which rows of a token tensor are a sequence, in plain types for kernels.
#include <cstdint>

#include "core/half.h"

namespace occam {

/// b sequences of t rows each, one after another; or, with offsets, sequence i in rows offsets[i] ..
/// offsets[i+1] of `capacity`, and t a bound of its length. A walk in scan order is the same in both.
struct SequenceRows {
  int64_t b = 0, t = 0;
  const int32_t* offsets = nullptr;
  int64_t capacity = 0;  // with offsets only

  /// Rows of a token tensor.
  OCCAM_HD int64_t rows() const { return offsets == nullptr ? b * t : capacity; }
  /// Those that a sequence has.
  OCCAM_HD int64_t used() const { return offsets == nullptr ? b * t : offsets[b]; }
  /// Whose row this used one is.
  OCCAM_HD int64_t sequence_of(int64_t row) const {
    if (offsets == nullptr) return row / t;
    int64_t low = 0, high = b;  // offsets[low] <= row < offsets[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (offsets[middle] <= row ? low : high) = middle;
    }
    return low;
  }
  OCCAM_HD int64_t begin(int64_t i) const { return offsets == nullptr ? i * t : offsets[i]; }
  OCCAM_HD int64_t length(int64_t i) const {
    if (offsets == nullptr) return t;
    const int64_t n = offsets[i + 1] - offsets[i];
    return n < t ? n : t;
  }
};

}  // namespace occam
