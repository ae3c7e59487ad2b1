#include "core/report/color.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace occam {

Rgb heat_color(double t) {
  static constexpr std::array<Rgb, 9> kStops{{{0x44, 0x01, 0x54},
                                              {0x47, 0x2d, 0x7b},
                                              {0x3b, 0x52, 0x8b},
                                              {0x2c, 0x72, 0x8e},
                                              {0x21, 0x91, 0x8c},
                                              {0x28, 0xae, 0x80},
                                              {0x5e, 0xc9, 0x62},
                                              {0xad, 0xdc, 0x30},
                                              {0xfd, 0xe7, 0x25}}};
  double at = std::clamp(std::isnan(t) ? 0.0 : t, 0.0, 1.0) * double(kStops.size() - 1);
  size_t left = std::min(size_t(at), kStops.size() - 2);
  double share = at - double(left);
  Rgb color;
  for (size_t c = 0; c < 3; ++c)
    color[c] = uint8_t(std::lround((1 - share) * kStops[left][c] + share * kStops[left + 1][c]));
  return color;
}

std::string hex(Rgb color) { return fmt::format("#{:02x}{:02x}{:02x}", color[0], color[1], color[2]); }

double luminance(Rgb color) {
  auto linear = [](uint8_t c) {
    double s = c / 255.0;
    return s <= 0.04045 ? s / 12.92 : std::pow((s + 0.055) / 1.055, 2.4);
  };
  return 0.2126 * linear(color[0]) + 0.7152 * linear(color[1]) + 0.0722 * linear(color[2]);
}

std::vector<uint8_t> heat_overlay(const std::vector<uint8_t>& pixels, int64_t h, int64_t w,
                                  const std::vector<float>& heat, int64_t map_h, int64_t map_w,
                                  double opacity) {
  OCCAM_ASSERT(int64_t(pixels.size()) == h * w * 3 && int64_t(heat.size()) == map_h * map_w && !heat.empty());
  auto [least, greatest] = std::minmax_element(heat.begin(), heat.end());
  float low = *least, span = *greatest - *least;
  std::vector<uint8_t> out(pixels.size());
  for (int64_t y = 0; y < h; ++y) {
    double at_y = std::clamp((double(y) + 0.5) * double(map_h) / double(h) - 0.5, 0.0, double(map_h - 1));
    int64_t y0 = int64_t(at_y), y1 = std::min(y0 + 1, map_h - 1);
    for (int64_t x = 0; x < w; ++x) {
      double at_x = std::clamp((double(x) + 0.5) * double(map_w) / double(w) - 0.5, 0.0, double(map_w - 1));
      int64_t x0 = int64_t(at_x), x1 = std::min(x0 + 1, map_w - 1);
      double fy = at_y - double(y0), fx = at_x - double(x0);
      auto value = [&](int64_t r, int64_t c) { return double(heat[size_t(r * map_w + c)]); };
      double v = (1 - fy) * ((1 - fx) * value(y0, x0) + fx * value(y0, x1)) +
                 fy * ((1 - fx) * value(y1, x0) + fx * value(y1, x1));
      Rgb color = heat_color(span > 0 ? (v - low) / span : 0);
      for (size_t c = 0; c < 3; ++c) {
        size_t i = size_t(y * w + x) * 3 + c;
        out[i] = uint8_t(std::lround((1 - opacity) * pixels[i] + opacity * color[c]));
      }
    }
  }
  return out;
}

}  // namespace occam
