#pragma once
// SVG text under construction. Private to core/report.
#include <string>
#include <string_view>

namespace occam {

/// Escapes text for HTML and SVG, quotes included; control characters that XML does not allow become spaces.
std::string escape_html(std::string_view text);

class Canvas {
 public:
  Canvas(double width, double height, const std::string& title, const std::string& description);

  // `style` names classes of chart_css.
  void line(double x1, double y1, double x2, double y2, std::string_view style);
  void rect(double x, double y, double w, double h, std::string_view style, std::string_view fill = "");
  void path(const std::string& data, std::string_view style);
  /// Anchor "start", "middle" or "end"; `turn` in degrees round (x, y).
  void text(double x, double y, std::string_view content, std::string_view style,
            std::string_view anchor = "start", double turn = 0);
  /// The marker of series `index`; shapes alternate so that colour is not the only sign.
  void marker(double x, double y, size_t index);
  /// A group with classes and a tooltip (none when empty); close with end().
  void begin(std::string_view style, const std::string& tooltip = "");
  void end();
  std::string finish();

 private:
  std::string out_;
};

/// "s0" ... "s7": the colour of series `index`; "d0" ... "d3" its dashes.
std::string series_style(size_t index);
/// A number with at most two decimals, for coordinates.
std::string coordinate(double value);
/// Estimated width in pixels of text at this font size.
double text_width(std::string_view text, double size = 12);
/// Text cut to about `width` pixels.
std::string fit_text(const std::string& text, double width, double size = 12);

}  // namespace occam
