#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/report/axes.h"
#include "core/report/svg.h"

namespace occam {

std::string bar_chart(const ChartOptions& options, const std::vector<std::string>& categories,
                      const std::vector<BarSeries>& series) {
  FrameInput input;
  input.categories = categories;
  input.legend = FrameInput::Legend::square;
  for (const BarSeries& s : series) {
    OCCAM_ASSERT(s.values.size() == categories.size() &&
                 (s.errors.empty() || s.errors.size() == s.values.size()));
    input.names.push_back(series.size() > 1 ? s.name : "");
    for (size_t i = 0; i < s.values.size(); ++i) {
      double error = s.errors.empty() || !std::isfinite(s.errors[i]) ? 0 : s.errors[i];
      input.y.add(s.values[i] - error, false);
      input.y.add(s.values[i] + error, false);
    }
  }
  for (const Reference& reference : options.references) input.y.add(reference.y, false);
  ChartOptions zero_based = options;
  zero_based.y.log = false;
  zero_based.y.from_zero = true;
  Canvas canvas(options.width, options.height, options.title, options.description);
  Frame frame = draw_frame(canvas, zero_based, input);
  auto at = [&](double value) { return frame.y(std::clamp(value, frame.y.min, frame.y.max)); };

  double slot = (frame.right - frame.left) / double(std::max<size_t>(1, categories.size()));
  double bar = std::min(0.76 * slot / double(std::max<size_t>(1, series.size())), 48.0);
  for (size_t s = 0; s < series.size(); ++s) {
    canvas.begin(series_style(s));
    for (size_t c = 0; c < categories.size(); ++c) {
      double value = series[s].values[c];
      if (!std::isfinite(value)) continue;
      double middle = frame.left + (double(c) + 0.5) * slot;
      double x = middle + (double(s) - double(series.size()) / 2) * bar;
      double y = at(value), zero = at(0);
      canvas.begin("point", fmt::format("{}{}{}: {}", categories[c], series[s].name.empty() ? "" : ", ",
                                        series[s].name, value_text(value, options.y.percent)));
      canvas.rect(x + 0.5, std::min(y, zero), bar - 1, std::abs(y - zero), "bar");
      if (!series[s].errors.empty() && std::isfinite(series[s].errors[c])) {
        double error = series[s].errors[c];
        canvas.line(x + bar / 2, at(value - error), x + bar / 2, at(value + error), "error");
      }
      canvas.end();
    }
    canvas.end();
  }
  if (frame.y.min < 0) canvas.line(frame.left, at(0), frame.right, at(0), "axis");
  return canvas.finish();
}

}  // namespace occam
