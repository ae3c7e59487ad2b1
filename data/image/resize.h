#pragma once
#include <cstdint>
#include <vector>

#include "data/image/image.h"

namespace occam {

enum class Filter : uint8_t { bilinear, bicubic };

/// Antialiased resize, equal to Pillow's Image.resize on 8-bit pixels: the filter is widened by the scale
/// when shrinking (Turkowski, "Filters for Common Resampling Tasks", Graphics Gems I, 1990; bicubic is Keys'
/// kernel with a = -0.5, IEEE TASSP 29(6), 1981), one direction after the other with 8 bits between them and
/// 22-bit fixed-point weights. Columns are resampled before rows, except where the rows lost are more than
/// twice the columns lost: then rows come first, as in Pillow 13 (earlier releases keep the order, and differ
/// there on hard edges). Only `window` of the width x height result is computed and returned; it must lie
/// inside. A default window is all of it. Throws Error{input} on an empty image or a size or window out of
/// range.
Image resize(const Image& image, int64_t width, int64_t height, Filter filter, Rect window = {});

/// One direction of resize(): for each wanted position of the result the first source position and the
/// weights of `taps` consecutive ones (zeros at the end where fewer are needed).
struct FilterWeights {
  int64_t taps = 0;
  std::vector<int64_t> first, count;
  std::vector<int32_t> value;  // [position, taps], with kFilterBits fraction bits
};
inline constexpr int kFilterBits = 22;  // sum 1 over 8-bit values leaves two bits for overshoot and sign
/// From `in` to `out` positions, for the results from, from + 1, ... (`positions` of them). With in == out
/// every result is its source.
FilterWeights filter_weights(int64_t in, int64_t out, int64_t from, int64_t positions, Filter filter);
/// Whether resize() resamples rows before columns.
bool resizes_rows_first(int64_t width, int64_t height, int64_t to_width, int64_t to_height);

}  // namespace occam
