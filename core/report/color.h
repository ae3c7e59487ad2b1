#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace occam {

using Rgb = std::array<uint8_t, 3>;

/// Dark blue to yellow with evenly rising lightness (matplotlib's viridis by nine stops), safe for
/// colour-blind readers and in grey. `t` in [0, 1] is clamped.
Rgb heat_color(double t);
/// "#440154"
std::string hex(Rgb color);
/// Relative luminance in [0, 1] as WCAG 2 defines it.
double luminance(Rgb color);

/// A picture with a coarser map laid over it: `pixels` [h, w, 3], `heat` [map_h, map_w] scaled from its least
/// to its greatest value and interpolated bilinearly between cell centres. `opacity` 0 shows the picture
/// alone.
std::vector<uint8_t> heat_overlay(const std::vector<uint8_t>& pixels, int64_t h, int64_t w,
                                  const std::vector<float>& heat, int64_t map_h, int64_t map_w,
                                  double opacity);

}  // namespace occam
