#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/report/axes.h"
#include "core/report/color.h"
#include "core/report/svg.h"

namespace occam {
namespace {

constexpr double kBarWidth = 14, kSmall = 11;

double widest(const std::vector<std::string>& labels) {
  double width = 0;
  for (const std::string& label : labels) width = std::max(width, text_width(label, kSmall));
  return width;
}

/// Every n-th label so that neighbours do not touch.
size_t label_stride(double needed, double step) { return size_t(std::max(1.0, std::ceil(needed / step))); }

void draw_color_bar(Canvas& canvas, const Scale& values, double x, double top, double height) {
  int slices = int(std::max(2.0, height / 2));
  double slice = height / slices;
  for (int i = 0; i < slices; ++i) {
    // Half a pixel more hides the seams.
    canvas.rect(x, top + i * slice, kBarWidth, slice + (i + 1 < slices ? 0.5 : 0), "swatch",
                hex(heat_color(1 - (i + 0.5) / slices)));
  }
  Scale scale = values;
  scale.from = top + height;
  scale.to = top;
  Ticks ticks = make_ticks(scale, {}, std::max(2, int(height / 40)), false);
  for (size_t i = 0; i < ticks.values.size(); ++i)
    canvas.text(x + kBarWidth + 5, scale(ticks.values[i]) + 4, ticks.labels[i], "small soft");
}

}  // namespace

std::string heat_map(const HeatMap& map) {
  size_t rows = map.rows.size(), columns = map.columns.size();
  OCCAM_ASSERT(map.values.size() == rows * columns);
  Extent extent;
  for (double value : map.values) extent.add(value, false);
  Axis limits;
  limits.min = map.min;
  limits.max = map.max;
  Scale values = make_scale(limits, extent, false);

  double left = 12 + widest(map.rows) + (map.row_axis.empty() ? 0 : 18);
  double right = map.width - 70;
  double top = map.title.empty() ? 12 : 42;
  double cell_w = std::min((right - left) / double(std::max<size_t>(1, columns)), 64.0);
  double cell_h = std::clamp(cell_w * 0.62, 18.0, 30.0);
  right = left + cell_w * double(columns);
  double bottom = top + cell_h * double(rows);
  double height = bottom + (map.column_axis.empty() ? 26 : 46);
  // A colour bar needs room for its ticks.
  height = std::max(height, top + 60.0);

  Canvas canvas(map.width, height, map.title, map.description);
  if (!map.title.empty()) canvas.text(2, 24, fit_text(map.title, map.width - 4, 14), "title");
  std::string sample =
      fmt::format("{:.{}f}", std::max(std::abs(values.min), std::abs(values.max)), map.digits);
  bool with_numbers = text_width(sample, kSmall) + 6 <= cell_w && cell_h >= 16;
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < columns; ++c) {
      double value = map.values[r * columns + c];
      double x = left + double(c) * cell_w, y = top + double(r) * cell_h;
      canvas.begin("point", fmt::format("{} {}, {} {}: {}", map.row_axis, map.rows[r], map.column_axis,
                                        map.columns[c], value_text(value, false)));
      if (std::isfinite(value)) {
        Rgb color = heat_color((value - values.min) / (values.max - values.min));
        canvas.rect(x, y, cell_w, cell_h, "cell", hex(color));
        // WCAG contrast: black wins above a luminance of 0.18.
        if (with_numbers) {
          canvas.text(x + cell_w / 2, y + cell_h / 2 + 4, fmt::format("{:.{}f}", value, map.digits),
                      luminance(color) > 0.18 ? "small dark" : "small light", "middle");
        }
      } else {
        canvas.rect(x, y, cell_w, cell_h, "cell blank");
        if (with_numbers)
          canvas.text(x + cell_w / 2, y + cell_h / 2 + 4, "\xe2\x80\x93", "small soft", "middle");
      }
      canvas.end();
    }
  }
  size_t every_row = label_stride(14, cell_h), every_column = label_stride(widest(map.columns) + 6, cell_w);
  for (size_t r = 0; r < rows; r += every_row)
    canvas.text(left - 7, top + (double(r) + 0.5) * cell_h + 4, map.rows[r], "small soft", "end");
  for (size_t c = 0; c < columns; c += every_column)
    canvas.text(left + (double(c) + 0.5) * cell_w, bottom + 16, map.columns[c], "small soft", "middle");
  if (!map.row_axis.empty()) canvas.text(12, (top + bottom) / 2, map.row_axis, "soft", "middle", -90);
  if (!map.column_axis.empty())
    canvas.text((left + right) / 2, bottom + 36, map.column_axis, "soft", "middle");
  if (extent.any) draw_color_bar(canvas, values, right + 14, top, std::max(bottom - top, 40.0));
  return canvas.finish();
}

}  // namespace occam
