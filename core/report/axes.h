#pragma once
// Scales, ticks and the frame of a chart. Private to core/report.
#include <string>
#include <vector>

#include "core/report/canvas.h"
#include "core/report/svg.h"

namespace occam {

/// Maps [min, max] to pixels [from, to].
struct Scale {
  double min = 0, max = 1, from = 0, to = 1;
  bool log = false;
  double operator()(double value) const;
  bool shows(double value) const;
};

struct Ticks {
  std::vector<double> values;
  std::vector<std::string> labels;
};

/// Finite extent of data; for a log axis of what is above 0.
struct Extent {
  double min = 0, max = 0;
  bool any = false, whole = true;  // whole: every value is a whole number
  void add(double value, bool log);
};

/// Limits of an axis from its options and data. `to_ticks` widens them to round numbers.
Scale make_scale(const Axis& axis, const Extent& extent, bool to_ticks);
/// About `count` round numbers inside the scale; whole numbers only when the data has no others.
Ticks make_ticks(const Scale& scale, const Axis& axis, int count, bool whole);
/// A value as tick labels and tooltips show it.
std::string value_text(double value, bool percent);

/// The parts of the chart that do not depend on its kind: title, legend, grid, axes, references.
struct Frame {
  Scale x, y;
  double left, right, top, bottom;
};
struct FrameInput {
  Extent x, y;
  std::vector<std::string> names;  // for the legend; empty names are left out
  enum class Legend { line, marker, square } legend = Legend::line;
  std::vector<std::string> categories;  // under the x axis in place of numbers
};
Frame draw_frame(Canvas& canvas, const ChartOptions& options, const FrameInput& input);

}  // namespace occam
