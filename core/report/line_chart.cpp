#include <fmt/format.h>

#include <cmath>

#include "core/check.h"
#include "core/report/axes.h"
#include "core/report/svg.h"

namespace occam {
namespace {

constexpr size_t kMostMarkers = 40;

/// Runs of neighbouring indices for which `shown` holds.
template <class Shown>
std::vector<std::pair<size_t, size_t>> runs(size_t count, Shown shown) {
  std::vector<std::pair<size_t, size_t>> out;
  for (size_t i = 0; i < count; ++i) {
    if (!shown(i)) continue;
    if (!out.empty() && out.back().second == i)
      out.back().second = i + 1;
    else
      out.emplace_back(i, i + 1);
  }
  return out;
}

std::string to(char command, double x, double y) {
  return fmt::format("{}{} {}", command, coordinate(x), coordinate(y));
}

void draw_series(Canvas& canvas, const Frame& frame, const ChartOptions& options, const Series& s,
                 size_t index) {
  auto clamp_y = [&](double y) { return frame.y(std::min(std::max(y, frame.y.min), frame.y.max)); };
  auto has_point = [&](size_t i) { return frame.x.shows(s.x[i]) && frame.y.shows(s.y[i]); };
  auto has_band = [&](size_t i) {
    return !s.low.empty() && frame.x.shows(s.x[i]) && std::isfinite(s.low[i]) && std::isfinite(s.high[i]);
  };
  canvas.begin(series_style(index));
  for (auto [first, last] : runs(s.x.size(), has_band)) {
    std::string data;
    for (size_t i = first; i < last; ++i)
      data += to(i == first ? 'M' : 'L', frame.x(s.x[i]), clamp_y(s.high[i]));
    for (size_t i = last; i-- > first;) data += to('L', frame.x(s.x[i]), clamp_y(s.low[i]));
    canvas.path(data + "z", "band");
  }
  for (auto [first, last] : runs(s.x.size(), has_point)) {
    std::string data;
    for (size_t i = first; i < last; ++i)
      data += to(i == first ? 'M' : 'L', frame.x(s.x[i]), frame.y(s.y[i]));
    canvas.path(data, "curve");
  }
  for (size_t i = 0; i < s.x.size() && s.x.size() <= kMostMarkers; ++i) {
    if (!has_point(i)) continue;
    std::string spread = s.low.empty() ? ""
                                       : fmt::format(" ({} to {})", value_text(s.low[i], options.y.percent),
                                                     value_text(s.high[i], options.y.percent));
    canvas.begin("point", fmt::format("{}{}{}: {}{}", s.name, s.name.empty() ? "" : ", ",
                                      value_text(s.x[i], options.x.percent),
                                      value_text(s.y[i], options.y.percent), spread));
    canvas.marker(frame.x(s.x[i]), frame.y(s.y[i]), index);
    canvas.end();
  }
  canvas.end();
}

}  // namespace

std::string line_chart(const ChartOptions& options, const std::vector<Series>& series) {
  FrameInput input;
  for (const Series& s : series) {
    OCCAM_ASSERT(s.x.size() == s.y.size() && s.low.size() == s.high.size());
    OCCAM_ASSERT(s.low.empty() || s.low.size() == s.y.size());
    input.names.push_back(s.name);
    for (double x : s.x) input.x.add(x, options.x.log);
    for (const auto* values : {&s.y, &s.low, &s.high})
      for (double y : *values) input.y.add(y, options.y.log);
  }
  for (const Reference& reference : options.references) input.y.add(reference.y, options.y.log);
  Canvas canvas(options.width, options.height, options.title, options.description);
  Frame frame = draw_frame(canvas, options, input);
  for (size_t i = 0; i < series.size(); ++i) draw_series(canvas, frame, options, series[i], i);
  return canvas.finish();
}

}  // namespace occam
