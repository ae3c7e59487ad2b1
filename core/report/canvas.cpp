#include "core/report/canvas.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/report/svg.h"

namespace occam {
namespace {

size_t code_points(std::string_view text) {
  return size_t(std::count_if(text.begin(), text.end(), [](char c) { return (uint8_t(c) & 0xC0) != 0x80; }));
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += uint8_t(c) < 0x20 && c != '\n' && c != '\t' ? ' ' : c;
    }
  }
  return out;
}

std::string coordinate(double value) {
  OCCAM_ASSERT(std::isfinite(value));
  std::string text = fmt::format("{:.2f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

double text_width(std::string_view text, double size) { return 0.56 * size * double(code_points(text)); }

std::string fit_text(const std::string& text, double width, double size) {
  if (text_width(text, size) <= width) return text;
  size_t room = size_t(std::max(1.0, width / (0.56 * size) - 1)), end = 0;
  while (end < text.size() && (room > 0 || (uint8_t(text[end]) & 0xC0) == 0x80)) {
    if ((uint8_t(text[end]) & 0xC0) != 0x80) --room;
    ++end;
  }
  while (end < text.size() && (uint8_t(text[end]) & 0xC0) == 0x80) ++end;
  return text.substr(0, end) + "\xe2\x80\xa6";
}

std::string series_style(size_t index) { return fmt::format("s{} d{}", index % 8, index / 8 % 4); }

Canvas::Canvas(double width, double height, const std::string& title, const std::string& description) {
  std::string label = title + (title.empty() || description.empty() ? "" : ". ") + description;
  out_ = fmt::format(
      "<svg class=\"chart\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" "
      "width=\"{0}\" height=\"{1}\" role=\"img\" aria-label=\"{2}\">\n",
      coordinate(width), coordinate(height), escape_html(label));
  if (!title.empty()) out_ += "<title>" + escape_html(title) + "</title>\n";
  if (!description.empty()) out_ += "<desc>" + escape_html(description) + "</desc>\n";
}

void Canvas::line(double x1, double y1, double x2, double y2, std::string_view style) {
  out_ += fmt::format("<line class=\"{}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>\n", style, coordinate(x1),
                      coordinate(y1), coordinate(x2), coordinate(y2));
}

void Canvas::rect(double x, double y, double w, double h, std::string_view style, std::string_view fill) {
  std::string filled = fill.empty() ? "" : fmt::format(" fill=\"{}\"", fill);
  out_ += fmt::format("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"{}/>\n", style,
                      coordinate(x), coordinate(y), coordinate(w), coordinate(h), filled);
}

void Canvas::path(const std::string& data, std::string_view style) {
  out_ += fmt::format("<path class=\"{}\" d=\"{}\"/>\n", style, data);
}

void Canvas::text(double x, double y, std::string_view content, std::string_view style,
                  std::string_view anchor, double turn) {
  std::string turned = turn == 0 ? ""
                                 : fmt::format(" transform=\"rotate({} {} {})\"", coordinate(turn),
                                               coordinate(x), coordinate(y));
  out_ += fmt::format("<text class=\"{}\" x=\"{}\" y=\"{}\" text-anchor=\"{}\"{}>{}</text>\n", style,
                      coordinate(x), coordinate(y), anchor, turned, escape_html(content));
}

void Canvas::marker(double x, double y, size_t index) {
  double r = 3.6;
  auto shape = [&](const char* data) {
    out_ += fmt::format("<path class=\"mark\" transform=\"translate({} {})\" d=\"{}\"/>\n", coordinate(x),
                        coordinate(y), data);
  };
  switch (index % 5) {
    case 0:
      out_ += fmt::format("<circle class=\"mark\" cx=\"{}\" cy=\"{}\" r=\"{}\"/>\n", coordinate(x),
                          coordinate(y), r);
      break;
    case 1:
      shape("M-3.4-3.4h6.8v6.8h-6.8z");
      break;  // square
    case 2:
      shape("M0-4.6L4.4 3.2H-4.4z");
      break;  // triangle
    case 3:
      shape("M0-4.8L4.8 0L0 4.8L-4.8 0z");
      break;  // diamond
    default:
      shape("M0 4.6L4.4-3.2H-4.4z");  // triangle on its head
  }
}

void Canvas::begin(std::string_view style, const std::string& tooltip) {
  out_ += fmt::format("<g class=\"{}\">", style);
  out_ += tooltip.empty() ? "\n" : "<title>" + escape_html(tooltip) + "</title>\n";
}

void Canvas::end() { out_ += "</g>\n"; }

std::string Canvas::finish() { return out_ + "</svg>\n"; }

// Okabe and Ito's palette ("Color Universal Design", 2008), its yellow and black left out, lightened for dark
// pages.
std::string chart_css() {
  std::string light, dark, series;
  constexpr const char* kLight[8] = {"#0072b2", "#d55e00", "#009e73", "#b8578f",
                                     "#b07d00", "#3a9bd4", "#6b6b6b", "#7a4fb5"};
  constexpr const char* kDark[8] = {"#5ab4ec", "#ff8a4c", "#35c99b", "#e59bc6",
                                    "#e8b53d", "#9cd3f5", "#b5b5b5", "#b99bea"};
  for (int i = 0; i < 8; ++i) {
    light += fmt::format("--s{}:{};", i, kLight[i]);
    dark += fmt::format("--s{}:{};", i, kDark[i]);
    series += fmt::format(".chart .s{0}{{color:var(--s{0})}}", i);
  }
  return ".chart{" + light +
         "--ink:#1f2328;--soft:#59636e;--grid:#e4e8ec;--axis:#8c959f;--paper:#fff;"
         "max-width:100%;height:auto;font:12px system-ui,-apple-system,\"Segoe UI\",\"Liberation "
         "Sans\",sans-serif}\n"
         "@media(prefers-color-scheme:dark){.chart{" +
         dark + "--ink:#e6edf3;--soft:#9da7b3;--grid:#2a313a;--axis:#6e7781;--paper:#0f141a}}\n" + series +
         "\n.chart text{fill:var(--ink)}.chart .title{font-size:14px;font-weight:600}.chart "
         ".soft{fill:var(--soft)}"
         ".chart .small{font-size:11px}.chart .light{fill:#fff}.chart "
         ".dark{fill:#111}\n"
         ".chart .grid{stroke:var(--grid)}.chart .axis{stroke:var(--axis)}"
         ".chart .reference{stroke:var(--soft);stroke-dasharray:5 4;stroke-width:1.3}\n"
         ".chart "
         ".curve{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
         ".chart .band{fill:currentColor;opacity:.16}.chart .whisker{stroke:currentColor;stroke-width:1.4}"
         ".chart .error{stroke:var(--ink);stroke-width:1.2}"
         ".chart .bar{fill:currentColor}.chart .mark{fill:currentColor;stroke:var(--paper);stroke-width:1}\n"
         ".chart .d1 .curve{stroke-dasharray:7 4}.chart .d2 .curve{stroke-dasharray:2 4}"
         ".chart .d3 .curve{stroke-dasharray:9 4 2 4}.chart .cell{stroke:var(--paper);stroke-width:1}"
         ".chart .blank{fill:var(--grid)}\n";
}

std::string standalone_svg(const std::string& chart) {
  size_t at = chart.find(">\n");
  OCCAM_ASSERT(chart.starts_with("<svg") && at != std::string::npos);
  return chart.substr(0, at + 2) + "<style>" + chart_css() +
         "</style>\n<rect width=\"100%\" height=\"100%\" " + "style=\"fill:var(--paper)\"/>\n" +
         chart.substr(at + 2);
}

}  // namespace occam
