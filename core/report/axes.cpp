#include "core/report/axes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace occam {
namespace {

/// The smallest of 1, 2, 5 times a power of ten that is at least `step`.
double round_step(double step) {
  double power = std::pow(10.0, std::floor(std::log10(step)));
  for (double factor : {1.0, 2.0, 5.0})
    if (factor * power >= step * (1 - 1e-9)) return factor * power;
  return 10 * power;
}

/// Labels with as many decimals as the step between them needs.
std::string tick_text(double value, double step, bool percent) {
  if (percent) {
    value *= 100;
    step *= 100;
  }
  std::string unit = percent ? " %" : "";
  double size = std::abs(value);
  if (size > 0 && (size >= 1e7 || step < 1e-5)) return fmt::format("{:.3g}{}", value, unit);
  if (step >= 1000 && std::fmod(value, 1000) == 0 && value != 0)
    return fmt::format("{:.0f}k{}", value / 1000, unit);
  int decimals = std::max(0, -int(std::floor(std::log10(step) + 1e-9)));
  if (size < step * 1e-6) value = 0;  // no "-0.0"
  return fmt::format("{:.{}f}{}", value, decimals, unit);
}

double log_or_self(double value, bool log) { return log ? std::log10(value) : value; }

/// Rows of legend entries that fit the width; returns the height taken.
double draw_legend(Canvas& canvas, const FrameInput& input, double left, double right, double top) {
  double x = left, y = top + 8;
  bool any = false;
  for (size_t i = 0; i < input.names.size(); ++i) {
    if (input.names[i].empty()) continue;
    std::string name = fit_text(input.names[i], right - left - 30);
    double width = 28 + text_width(name) + 14;
    if (any && x + width > right) {
      x = left;
      y += 18;
    }
    any = true;
    canvas.begin(series_style(i));
    if (input.legend == FrameInput::Legend::square) {
      canvas.rect(x + 5, y - 5, 11, 11, "bar");
    } else {
      if (input.legend == FrameInput::Legend::line) canvas.line(x, y, x + 20, y, "curve");
      canvas.marker(x + 10, y, i);
    }
    canvas.end();
    canvas.text(x + 26, y + 4, name, "small");
    x += width;
  }
  return any ? y - top + 16 : 0;
}

void draw_categories(Canvas& canvas, const Frame& frame, const std::vector<std::string>& names, bool turned) {
  double step = (frame.right - frame.left) / double(names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    double x = frame.left + (double(i) + 0.5) * step;
    if (turned) {
      canvas.text(x + 4, frame.bottom + 14, fit_text(names[i], 120, 11), "small", "end", -35);
    } else {
      canvas.text(x, frame.bottom + 17, names[i], "small", "middle");
    }
  }
}

}  // namespace

double Scale::operator()(double value) const {
  double low = log_or_self(min, log), high = log_or_self(max, log);
  double share = (log_or_self(value, log) - low) / (high - low);
  return from + share * (to - from);
}

bool Scale::shows(double value) const {
  return std::isfinite(value) && (!log || value > 0) && value >= min - 1e-9 * (max - min) &&
         value <= max + 1e-9 * (max - min);
}

void Extent::add(double value, bool log) {
  if (!std::isfinite(value) || (log && value <= 0)) return;
  min = any ? std::min(min, value) : value;
  max = any ? std::max(max, value) : value;
  whole = whole && value == std::floor(value) && std::abs(value) < 1e15;
  any = true;
}

Scale make_scale(const Axis& axis, const Extent& extent, bool to_ticks) {
  Scale scale;
  scale.log = axis.log;
  double min = extent.any ? extent.min : axis.log ? 0.1 : 0, max = extent.any ? extent.max : 1;
  if (axis.from_zero && !axis.log) {
    min = std::min(min, 0.0);
    max = std::max(max, 0.0);
  }
  if (axis.min) min = *axis.min;
  if (axis.max) max = *axis.max;
  if (!(max > min)) {  // one value: room on both sides
    double pad = axis.log ? 0 : std::max(std::abs(min) * 0.1, 1e-3);
    if (!axis.min) min = axis.log ? min / 2 : min - pad;
    if (!axis.max || !(max > min)) max = axis.log ? max * 2 : std::max(max, min) + pad;
  }
  if (to_ticks && !axis.log) {
    double step = round_step((max - min) / 6);
    if (!axis.min) min = std::floor(min / step + 1e-9) * step;
    if (!axis.max) max = std::ceil(max / step - 1e-9) * step;
  }
  scale.min = min;
  scale.max = max;
  return scale;
}

Ticks make_ticks(const Scale& scale, const Axis& axis, int count, bool whole) {
  Ticks ticks;
  double decades = scale.log ? std::log10(scale.max / scale.min) : 0;
  if (scale.log && decades >= 0.7) {
    double every = std::max(1.0, std::ceil(decades / count));
    std::vector<double> factors = decades < 2.5 ? std::vector<double>{1, 2, 5} : std::vector<double>{1};
    for (double e = std::floor(std::log10(scale.min)); e <= std::log10(scale.max) + 1e-9; e += every) {
      for (double factor : factors) {
        double value = factor * std::pow(10.0, e);
        if (!scale.shows(value)) continue;
        ticks.values.push_back(value);
        ticks.labels.push_back(axis.percent ? fmt::format("{:g} %", value * 100)
                                            : fmt::format("{:g}", value));
      }
    }
    return ticks;
  }
  double step = round_step((scale.max - scale.min) / std::max(count, 1));
  if (whole && !axis.percent) step = std::max(step, 1.0);
  for (double k = std::ceil(scale.min / step - 1e-9); k * step <= scale.max + 1e-9 * step; ++k) {
    ticks.values.push_back(k * step);
    ticks.labels.push_back(tick_text(k * step, step, axis.percent));
  }
  return ticks;
}

std::string value_text(double value, bool percent) {
  if (!std::isfinite(value)) return "\xe2\x80\x93";
  return percent ? fmt::format("{:.4g} %", value * 100) : fmt::format("{:.4g}", value);
}

Frame draw_frame(Canvas& canvas, const ChartOptions& options, const FrameInput& input) {
  Frame frame;
  frame.x = make_scale(options.x, input.x, false);
  frame.y = make_scale(options.y, input.y, true);
  double top = 10;
  if (!options.title.empty()) {
    canvas.text(2, 24, fit_text(options.title, options.width - 4, 14), "title");
    top = 38;
  }
  top += draw_legend(canvas, input, 2, options.width - 2, top);

  double wanted = 0;
  for (const std::string& name : input.categories) wanted = std::max(wanted, text_width(name, 11));
  bool turned = wanted > (options.width - 100) / std::max<double>(1, double(input.categories.size())) - 6;
  frame.top = top + 8;
  frame.bottom =
      options.height - (options.x.label.empty() ? 30 : 48) - (turned ? std::min(wanted, 120.0) * 0.5 : 0);

  Ticks y = make_ticks(frame.y, options.y, std::max(2, int((frame.bottom - frame.top) / 38)), input.y.whole);
  double widest = 0;
  for (const std::string& label : y.labels) widest = std::max(widest, text_width(label, 11));
  frame.left = 12 + widest + (options.y.label.empty() ? 0 : 18);
  frame.right = options.width - 18;
  frame.x.from = frame.left;
  frame.x.to = frame.right;
  frame.y.from = frame.bottom;
  frame.y.to = frame.top;

  for (size_t i = 0; i < y.values.size(); ++i) {
    double at = frame.y(y.values[i]);
    canvas.line(frame.left, at, frame.right, at, "grid");
    canvas.text(frame.left - 7, at + 4, y.labels[i], "small soft", "end");
  }
  if (input.categories.empty()) {
    Ticks x =
        make_ticks(frame.x, options.x, std::max(2, int((frame.right - frame.left) / 45)), input.x.whole);
    for (size_t i = 0; i < x.values.size(); ++i) {
      double at = frame.x(x.values[i]);
      canvas.line(at, frame.bottom, at, frame.bottom + 4, "axis");
      canvas.text(at, frame.bottom + 17, x.labels[i], "small soft", "middle");
    }
  } else {
    draw_categories(canvas, frame, input.categories, turned);
  }
  canvas.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis");
  if (!options.x.label.empty()) {
    canvas.text((frame.left + frame.right) / 2, options.height - 10, options.x.label, "soft", "middle");
  }
  if (!options.y.label.empty()) {
    canvas.text(12, (frame.top + frame.bottom) / 2, options.y.label, "soft", "middle", -90);
  }
  for (const Reference& reference : options.references) {
    if (!frame.y.shows(reference.y)) continue;
    double at = frame.y(reference.y);
    canvas.line(frame.left, at, frame.right, at, "reference");
    canvas.text(frame.right - 2, at - 5, reference.label, "small soft", "end");
  }
  if (!input.y.any) {
    canvas.text((frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2, "no data", "soft", "middle");
  }
  return frame;
}

}  // namespace occam
