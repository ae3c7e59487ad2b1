#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/report/axes.h"
#include "core/report/svg.h"

namespace occam {
namespace {

struct Box {
  double left, top, right, bottom;
  double overlap(const Box& other) const {
    double w = std::min(right, other.right) - std::max(left, other.left);
    double h = std::min(bottom, other.bottom) - std::max(top, other.top);
    return w > 0 && h > 0 ? w * h : 0;
  }
};

/// Puts each label at the one of eight places round its point that covers the least of what is there already.
class Labels {
 public:
  Labels(const Frame& frame) : area_{frame.left, frame.top - 4, frame.right + 14, frame.bottom} {}
  void occupy(double x, double top, double bottom) { taken_.push_back({x - 4, top - 4, x + 4, bottom + 4}); }
  void place(Canvas& canvas, double x, double y, const std::string& text) {
    double w = text_width(text, 11), h = 11;
    struct Place {
      double dx, dy;
    };
    const std::array<Place, 8> places{Place{8, -h / 2}, {-w / 2, -h - 7}, {-w / 2, 7},      {-w - 8, -h / 2},
                                      {6, -h - 4},      {6, 4},           {-w - 6, -h - 4}, {-w - 6, 4}};
    Box best{};
    double least = 1e300;
    for (const Place& p : places) {
      Box box{x + p.dx, y + p.dy, x + p.dx + w, y + p.dy + h};
      double inside = area_.overlap(box), cost = (w * h - inside) * 4;
      for (const Box& other : taken_) cost += box.overlap(other);
      if (cost < least) {
        least = cost;
        best = box;
      }
    }
    taken_.push_back(best);
    canvas.text(best.left, best.bottom - 2, text, "small");
  }

 private:
  Box area_;
  std::vector<Box> taken_;
};

/// Room round the outermost points, which a line chart does not need.
Axis padded(Axis axis, const Extent& extent) {
  if (axis.log || !extent.any || extent.max <= extent.min) return axis;
  double pad = 0.05 * (extent.max - extent.min);
  if (!axis.min && !(axis.from_zero && extent.min >= 0)) axis.min = extent.min - pad;
  if (!axis.max) axis.max = extent.max + pad;
  return axis;
}

}  // namespace

std::string scatter_chart(const ChartOptions& options, const std::vector<PointGroup>& groups) {
  FrameInput input;
  input.legend = FrameInput::Legend::marker;
  for (const PointGroup& group : groups) {
    input.names.push_back(group.name);
    for (const Point& p : group.points) {
      input.x.add(p.x, options.x.log);
      input.y.add(p.y - p.error.value_or(0), options.y.log);
      input.y.add(p.y + p.error.value_or(0), options.y.log);
    }
  }
  for (const Reference& reference : options.references) input.y.add(reference.y, options.y.log);
  ChartOptions padded_options = options;
  padded_options.x = padded(options.x, input.x);
  Canvas canvas(options.width, options.height, options.title, options.description);
  Frame frame = draw_frame(canvas, padded_options, input);

  Labels labels(frame);
  auto shown = [&](const Point& p) { return frame.x.shows(p.x) && frame.y.shows(p.y); };
  for (size_t g = 0; g < groups.size(); ++g) {
    canvas.begin(series_style(g));
    for (const Point& p : groups[g].points) {
      if (!shown(p)) continue;
      double x = frame.x(p.x), y = frame.y(p.y);
      canvas.begin("point",
                   fmt::format("{}{}{}: {}, {}", groups[g].name, p.label.empty() ? "" : " ", p.label,
                               value_text(p.x, options.x.percent), value_text(p.y, options.y.percent)));
      double top = y, bottom = y;
      if (p.error && std::isfinite(*p.error)) {
        bottom = frame.y(std::max(p.y - *p.error, frame.y.min));
        top = frame.y(std::min(p.y + *p.error, frame.y.max));
        canvas.line(x, bottom, x, top, "whisker");
      }
      canvas.marker(x, y, g);
      canvas.end();
      labels.occupy(x, top, bottom);
    }
    canvas.end();
  }
  for (const PointGroup& group : groups)
    for (const Point& p : group.points)
      if (shown(p) && !p.label.empty()) labels.place(canvas, frame.x(p.x), frame.y(p.y), p.label);
  return canvas.finish();
}

}  // namespace occam
