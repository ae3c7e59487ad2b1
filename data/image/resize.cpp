#include "data/image/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/vmath.h"

namespace occam {

namespace {

double filter_radius(Filter filter) { return filter == Filter::bicubic ? 2.0 : 1.0; }

double filter_value(Filter filter, double x) {
  x = std::fabs(x);
  if (filter == Filter::bilinear) return x < 1 ? 1 - x : 0;
  constexpr double a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

uint8_t to_byte(int32_t sum) { return uint8_t(std::clamp(sum >> kFilterBits, 0, 255)); }
constexpr int32_t kHalf = 1 << (kFilterBits - 1);

using Int4 = int32_t __attribute__((vector_size(16)));

/// One row of 3-channel pixels, widened to 32 bits. Reads one number past the last pixel.
OCCAM_VECTORIZED void resize_row_colour(const int32_t* in, uint8_t* out, int64_t positions,
                                        const FilterWeights& w) {
  for (int64_t i = 0; i < positions; ++i) {
    const int32_t* source = in + w.first[size_t(i)] * 3;
    const int32_t* weight = w.value.data() + i * w.taps;
    Int4 sum = {kHalf, kHalf, kHalf, kHalf};  // the last lane is not used
    for (int64_t k = 0, n = w.count[size_t(i)]; k < n; ++k) {
      Int4 pixel;
      std::memcpy(&pixel, source + k * 3, sizeof pixel);
      sum += pixel * weight[k];
    }
    for (int c = 0; c < 3; ++c) out[i * 3 + c] = to_byte(sum[c]);
  }
}

OCCAM_VECTORIZED void resize_row_grey(const uint8_t* in, uint8_t* out, int64_t positions,
                                      const FilterWeights& w) {
  for (int64_t i = 0; i < positions; ++i) {
    const uint8_t* source = in + w.first[size_t(i)];
    const int32_t* weight = w.value.data() + i * w.taps;
    int32_t sum = kHalf;
    for (int64_t k = 0, n = w.count[size_t(i)]; k < n; ++k) sum += source[k] * weight[k];
    out[i] = to_byte(sum);
  }
}

OCCAM_VECTORIZED void add_row(const uint8_t* in, int32_t weight, int32_t* sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += in[i] * weight;
}

OCCAM_VECTORIZED void store_row(const int32_t* sum, uint8_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_byte(sum[i]);
}

/// Resamples rows [y0, y0 + rows) of `in` along x.
Image across(const Image& in, int64_t y0, int64_t rows, const FilterWeights& w) {
  auto positions = int64_t(w.first.size());
  Image out(positions, rows, in.channels());
  std::vector<int32_t> wide(size_t(in.width() * in.channels() + 1));
  for (int64_t y = 0; y < rows; ++y) {
    if (in.channels() == 1) {
      resize_row_grey(in.row(y0 + y), out.row(y), positions, w);
      continue;
    }
    std::copy_n(in.row(y0 + y), in.width() * 3, wide.data());
    resize_row_colour(wide.data(), out.row(y), positions, w);
  }
  return out;
}

/// Resamples columns [x0, x0 + columns) of `in` along y.
Image down(const Image& in, int64_t x0, int64_t columns, const FilterWeights& w) {
  auto positions = int64_t(w.first.size());
  int64_t c = in.channels(), n = columns * c;
  Image out(columns, positions, c);
  std::vector<int32_t> sum(static_cast<size_t>(n));
  for (int64_t y = 0; y < positions; ++y) {
    std::fill(sum.begin(), sum.end(), kHalf);
    for (int64_t k = 0; k < w.count[size_t(y)]; ++k)
      add_row(in.row(w.first[size_t(y)] + k) + x0 * c, w.value[size_t(y * w.taps + k)], sum.data(), n);
    store_row(sum.data(), out.row(y), n);
  }
  return out;
}

/// Source positions that `w` reads, as a start and a length; `w` is then counted from that start.
std::pair<int64_t, int64_t> narrow(FilterWeights& w) {
  int64_t start = w.first.front(), length = w.first.back() + w.count.back() - start;
  for (int64_t& first : w.first) first -= start;
  return {start, length};
}

}  // namespace

FilterWeights filter_weights(int64_t in, int64_t out, int64_t from, int64_t positions, Filter filter) {
  double scale = double(in) / double(out), widened = std::max(scale, 1.0);
  double radius = filter_radius(filter) * widened;
  FilterWeights w;
  w.taps = std::min(int64_t(std::ceil(radius)) * 2 + 1, in);
  w.first.resize(size_t(positions));
  w.count.resize(size_t(positions));
  w.value.assign(size_t(positions * w.taps), 0);
  std::vector<double> raw(static_cast<size_t>(w.taps));
  for (int64_t i = 0; i < positions; ++i) {
    double centre = (double(from + i) + 0.5) * scale;
    // Truncation toward zero, as Pillow rounds them; both bounds are then inside the source.
    int64_t first = std::max<int64_t>(int64_t(centre - radius + 0.5), 0);
    int64_t last = std::min(int64_t(centre + radius + 0.5), in);
    int64_t count = std::min(last - first, w.taps);
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      raw[size_t(k)] = filter_value(filter, (double(k + first) - centre + 0.5) / widened);
      sum += raw[size_t(k)];
    }
    for (int64_t k = 0; k < count; ++k) {
      double share = sum != 0 ? raw[size_t(k)] / sum : raw[size_t(k)];
      double fixed = share * double(1 << kFilterBits);
      w.value[size_t(i * w.taps + k)] = int32_t(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    }
    w.first[size_t(i)] = first;
    w.count[size_t(i)] = count;
  }
  return w;
}

bool resizes_rows_first(int64_t width, int64_t height, int64_t to_width, int64_t to_height) {
  return to_height < height && height - to_height > 2 * (width - to_width);
}

Image resize(const Image& image, int64_t width, int64_t height, Filter filter, Rect window) {
  OCCAM_CHECK(!image.empty(), ErrorKind::input, "resize: the image is empty");
  OCCAM_CHECK(width >= 1 && height >= 1 && width <= Image::kMaxSide && height <= Image::kMaxSide,
              ErrorKind::input, "resize: cannot make an image of {} x {} pixels", width, height);
  if (window == Rect{}) window = {0, 0, width, height};
  OCCAM_CHECK(window.x >= 0 && window.y >= 0 && window.width >= 1 && window.height >= 1 &&
                  window.x + window.width <= width && window.y + window.height <= height,
              ErrorKind::input, "resize: window {} x {} at ({}, {}) is outside the {} x {} result",
              window.width, window.height, window.x, window.y, width, height);
  bool same_width = width == image.width(), same_height = height == image.height();
  if (same_width && same_height) return crop(image, window);
  FilterWeights columns = filter_weights(image.width(), width, window.x, window.width, filter);
  FilterWeights rows = filter_weights(image.height(), height, window.y, window.height, filter);
  // A direction that keeps its size is left alone.
  if (same_width) return down(image, window.x, window.width, rows);
  if (same_height) return across(image, window.y, window.height, columns);

  if (resizes_rows_first(image.width(), image.height(), width, height)) {
    auto [start, length] = narrow(columns);
    return across(down(image, start, length, rows), 0, window.height, columns);
  }
  auto [start, length] = narrow(rows);
  return down(across(image, start, length, columns), 0, window.width, rows);
}

}  // namespace occam
