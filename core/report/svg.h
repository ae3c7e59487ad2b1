#pragma once
// Charts as inline SVG. They take their colours from the page's style sheet (chart_css), so they follow its
// light or dark theme; series differ by marker or dash too, not by colour alone. Values that are not finite
// leave a gap.
#include <optional>
#include <string>
#include <vector>

namespace occam {

struct Axis {
  std::string label;
  std::optional<double> min, max;  // empty: from the data
  bool log = false;                // values at or below 0 are left out
  bool percent = false;            // 0.5 is shown as 50 %
  bool from_zero = false;          // an axis without `min` begins at 0
};

/// A horizontal line across the chart.
struct Reference {
  double y = 0;
  std::string label;
};

struct ChartOptions {
  std::string title;
  std::string description;  // one or two sentences on what it shows, for readers who do not see it
  Axis x, y;
  std::vector<Reference> references;
  double width = 720, height = 380;
};

struct Series {
  std::string name;
  std::vector<double> x, y;
  std::vector<double> low, high;  // the band round y; both empty, or as long as y
};
std::string line_chart(const ChartOptions& options, const std::vector<Series>& series);

struct Point {
  double x = 0, y = 0;
  std::string label;            // beside the point; may be empty
  std::optional<double> error;  // half length of a vertical whisker
};
struct PointGroup {
  std::string name;
  std::vector<Point> points;
};
std::string scatter_chart(const ChartOptions& options, const std::vector<PointGroup>& groups);

struct BarSeries {
  std::string name;
  std::vector<double> values;  // one a category
  std::vector<double> errors;  // half lengths of whiskers; empty for none
};
/// Bars stand on 0. options.x gives the label only.
std::string bar_chart(const ChartOptions& options, const std::vector<std::string>& categories,
                      const std::vector<BarSeries>& series);

struct HeatMap {
  std::string title, description;
  std::string row_axis, column_axis;       // "layer", "head"
  std::vector<std::string> rows, columns;  // labels
  std::vector<double> values;              // row-major
  std::optional<double> min, max;          // of the colour scale; empty: from the data
  int digits = 2;                          // of the numbers in the cells, where they fit
  double width = 720;
};
std::string heat_map(const HeatMap& map);

/// Style sheet of the charts for both themes.
std::string chart_css();
/// A chart as a file of its own, with its style sheet inside.
std::string standalone_svg(const std::string& chart);

}  // namespace occam
