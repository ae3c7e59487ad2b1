#include <gtest/gtest.h>
#include <zlib.h>

#include <cmath>
#include <limits>
#include <regex>

#include "core/report/axes.h"
#include "core/report/color.h"
#include "core/report/html.h"
#include "core/report/png.h"
#include "core/report/svg.h"
#include "core/report/table.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++n;
  return n;
}

/// Every tag is closed in order and attributes are quoted; html's own void elements aside. Returns what is
/// wrong.
std::string markup_problem(const std::string& text) {
  std::vector<std::string> open;
  std::regex tag("<(/?)([a-zA-Z][a-zA-Z0-9]*)((?: +[a-zA-Z0-9:-]+=\"[^\"<]*\")*)(/?)>");
  for (size_t at = text.find('<'); at != std::string::npos; at = text.find('<', at + 1)) {
    if (text.compare(at, 9, "<!doctype") == 0) continue;
    std::smatch match;
    std::string rest = text.substr(at, std::min<size_t>(4000, text.size() - at));
    if (rest.starts_with("<img")) continue;  // a long data URI, checked elsewhere
    if (!std::regex_search(rest, match, tag, std::regex_constants::match_continuous))
      return rest.substr(0, 80);
    std::string name = match[2];
    if (name == "meta" || match[4] == "/") continue;
    if (match[1] != "/") {
      open.push_back(name);
    } else {
      if (open.empty() || open.back() != name) return "closing " + name;
      open.pop_back();
    }
  }
  return open.empty() ? "" : "open " + open.back();
}

std::vector<double> numbers_after(const std::string& text, const std::string& attribute) {
  std::vector<double> out;
  std::regex pattern(" " + attribute + "=\"(-?[0-9.]+)\"");
  for (std::sregex_iterator it(text.begin(), text.end(), pattern), end; it != end; ++it)
    out.push_back(std::stod((*it)[1]));
  return out;
}

TEST(Svg, LineChartDrawsEverySeriesInsideItsFrame) {
  ChartOptions options{.title = "Loss <a&b>",
                       .description = "It \"falls\"",
                       .x = {.label = "step"},
                       .references = {{0.2, "no-op"}}};
  std::string svg =
      line_chart(options, {{"first", {0, 1, 2}, {1, 0.5, 0.25}, {0.9, 0.4, 0.2}, {1.1, 0.6, 0.3}},
                           {"second", {0, 1, 2, 3}, {1, kNan, 0.5, 0.4}, {}, {}}});
  EXPECT_EQ(markup_problem(svg), "");
  EXPECT_EQ(count(svg, "class=\"band\""), 1u);
  EXPECT_EQ(count(svg, "class=\"curve\" d="), 3u) << "the gap splits the second curve";
  EXPECT_EQ(count(svg, "class=\"reference\""), 1u);
  EXPECT_NE(svg.find("<title>Loss &lt;a&amp;b&gt;</title>"), std::string::npos);
  EXPECT_NE(svg.find("role=\"img\" aria-label=\"Loss &lt;a&amp;b&gt;. It &quot;falls&quot;\""),
            std::string::npos);
  for (double x : numbers_after(svg, "cx")) EXPECT_TRUE(x >= 0 && x <= options.width);
  for (double y : numbers_after(svg, "cy")) EXPECT_TRUE(y >= 0 && y <= options.height);
}

TEST(Svg, ChartsTakeAnythingWithoutBadNumbers) {
  std::vector<std::string> charts;
  ChartOptions plain{.title = "t"}, log{.title = "t", .x = {.log = true}, .y = {.log = true}};
  for (const ChartOptions& options : {plain, log}) {
    charts.push_back(line_chart(options, {}));
    charts.push_back(line_chart(options, {{"a", {}, {}, {}, {}}}));
    charts.push_back(line_chart(options, {{"a", {1}, {kNan}, {}, {}}}));
    charts.push_back(line_chart(options, {{"a", {1, 2}, {kInf, -1}, {}, {}}}));
    charts.push_back(line_chart(options, {{"a", {3, 3}, {5, 5}, {kNan, 4}, {6, kInf}}}));
    charts.push_back(line_chart(options, {{"a", {0, 1}, {0, 0}, {}, {}}}));
    charts.push_back(line_chart(options, {{"a", {1e-300, 1e300}, {1e-300, 1e300}, {}, {}}}));
    charts.push_back(
        scatter_chart(options, {{"g", {{kNan, 1, "x", {}}, {1, 1, "y", 0.5}, {1, 1, "z", kNan}}}}));
    charts.push_back(scatter_chart(options, {}));
    charts.push_back(bar_chart(options, {}, {}));
    charts.push_back(bar_chart(options, {"a", "b"}, {{"s", {kNan, -2}, {kInf, 1}}}));
  }
  charts.push_back(heat_map({.title = "t"}));
  charts.push_back(heat_map({.rows = {"a"}, .columns = {"b"}, .values = {kNan}}));
  charts.push_back(heat_map({.rows = {"a"}, .columns = {"b", "c"}, .values = {kInf, 3}}));
  for (const std::string& svg : charts) {
    EXPECT_EQ(markup_problem(svg), "");
    std::string geometry = std::regex_replace(svg, std::regex("<text.*?</text>|<title>.*?</title>"), "");
    for (const char* bad : {"nan", "inf", "e+"})
      EXPECT_EQ(geometry.find(bad), std::string::npos) << bad << "\n" << svg;
  }
}

TEST(Svg, ScatterLabelsDoNotCoverOneAnotherWhereThereIsRoom) {
  PointGroup group{"g", {}};
  for (int i = 0; i < 4; ++i)
    group.points.push_back({0.5 + 0.001 * i, 0.5, "label " + std::to_string(i), {}});
  group.points.push_back({0, 0, "", {}});
  group.points.push_back({1, 1, "", {}});
  std::string svg = scatter_chart({.title = "t"}, {group});
  std::vector<std::pair<double, double>> places;
  std::regex label("<text class=\"small\" x=\"([0-9.]+)\" y=\"([0-9.]+)\" text-anchor=\"start\">label");
  for (std::sregex_iterator it(svg.begin(), svg.end(), label), end; it != end; ++it)
    places.emplace_back(std::stod((*it)[1]), std::stod((*it)[2]));
  ASSERT_EQ(places.size(), 4u);
  for (size_t i = 0; i < places.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      EXPECT_TRUE(std::abs(places[i].second - places[j].second) >= 11 ||
                  std::abs(places[i].first - places[j].first) >= text_width("label 0", 11));
}

TEST(Svg, BarsStandOnZero) {
  std::string svg = bar_chart({.title = "t"}, {"a", "b"}, {{"s", {2, 4}, {}}});
  std::vector<double> heights;
  std::regex bar("<rect class=\"bar\"[^>]* height=\"([0-9.]+)\"");
  for (std::sregex_iterator it(svg.begin(), svg.end(), bar), end; it != end; ++it)
    heights.push_back(std::stod((*it)[1]));
  ASSERT_EQ(heights.size(), 2u);
  EXPECT_NEAR(heights[1] / heights[0], 2, 1e-3);
}

TEST(Svg, HeatMapCellsCarryTheirValues) {
  std::string svg = heat_map({.title = "Entropy",
                              .row_axis = "layer",
                              .column_axis = "head",
                              .rows = {"0", "1"},
                              .columns = {"0", "1", "2"},
                              .values = {0, 0.25, 0.5, 0.75, 1, kNan}});
  EXPECT_EQ(markup_problem(svg), "");
  EXPECT_EQ(count(svg, "class=\"cell\""), 5u);
  EXPECT_EQ(count(svg, "class=\"cell blank\""), 1u);
  EXPECT_NE(svg.find("layer 1, head 0: 0.75"), std::string::npos);
  EXPECT_NE(svg.find("fill=\"" + hex(heat_color(0)) + "\""), std::string::npos);
  EXPECT_NE(svg.find("fill=\"" + hex(heat_color(1)) + "\""), std::string::npos);
}

TEST(Svg, StandaloneFilesCarryTheirStyle) {
  std::string svg = standalone_svg(bar_chart({.title = "t"}, {"a"}, {{"s", {1}, {}}}));
  EXPECT_NE(svg.find("<style>"), std::string::npos);
  EXPECT_EQ(markup_problem(svg), "");
}

TEST(Ticks, AreRoundNumbers) {
  auto labels = [](double min, double max, Axis axis = {}, bool whole = false) {
    return make_ticks({.min = min, .max = max, .log = axis.log}, axis, 5, whole).labels;
  };
  using Labels = std::vector<std::string>;
  EXPECT_EQ(labels(0, 1), (Labels{"0.0", "0.2", "0.4", "0.6", "0.8", "1.0"}));
  EXPECT_EQ(labels(0, 1, {.percent = true}), (Labels{"0 %", "20 %", "40 %", "60 %", "80 %", "100 %"}));
  EXPECT_EQ(labels(-0.1, 0.1), (Labels{"-0.10", "-0.05", "0.00", "0.05", "0.10"}));
  EXPECT_EQ(labels(0, 3, {}, true), (Labels{"0", "1", "2", "3"}));
  EXPECT_EQ(labels(0, 20000), (Labels{"0", "5k", "10k", "15k", "20k"}));
  EXPECT_EQ(labels(0.001, 1, {.log = true}), (Labels{"0.001", "0.01", "0.1", "1"}));
}

TEST(Color, HeatRisesInLightnessAndTextContrasts) {
  double last = -1;
  for (int i = 0; i <= 100; ++i) {
    double now = luminance(heat_color(i / 100.0));
    EXPECT_GT(now, last - 1e-3) << i;
    last = now;
    // The text colour that heat_map picks reaches the 4.5 that WCAG asks of text this small.
    double text = now > 0.18 ? luminance({0x11, 0x11, 0x11}) : 1.0;
    double ratio = (std::max(now, text) + 0.05) / (std::min(now, text) + 0.05);
    EXPECT_GE(ratio, 4.0) << i;
  }
}

TEST(Color, OverlayKeepsThePictureAtZeroAndShowsTheMapAtOne) {
  std::vector<uint8_t> pixels(4 * 4 * 3, 100);
  std::vector<float> heat{0, 0, 1, 1};
  EXPECT_EQ(heat_overlay(pixels, 4, 4, heat, 2, 2, 0), pixels);
  std::vector<uint8_t> full = heat_overlay(pixels, 4, 4, heat, 2, 2, 1);
  Rgb top{full[0], full[1], full[2]}, bottom{full[45], full[46], full[47]};
  EXPECT_EQ(top, heat_color(0));
  EXPECT_EQ(bottom, heat_color(1));
  EXPECT_NO_THROW(heat_overlay(pixels, 4, 4, std::vector<float>(4, 0.5f), 2, 2, 0.5));
}

// Decodes what encode_png wrote, by the PNG specification: chunks with checksums, zlib, the five row filters.
std::vector<uint8_t> decode_png(const std::string& png, int64_t height, int64_t width, int channels) {
  EXPECT_EQ(png.substr(0, 8), std::string("\x89PNG\r\n\x1a\n"));
  auto number = [&](size_t at) {
    return uint32_t(uint8_t(png[at])) << 24 | uint32_t(uint8_t(png[at + 1])) << 16 |
           uint32_t(uint8_t(png[at + 2])) << 8 | uint32_t(uint8_t(png[at + 3]));
  };
  std::string packed;
  for (size_t at = 8; at < png.size();) {
    size_t length = number(at);
    const Bytef* body = reinterpret_cast<const Bytef*>(png.data()) + at + 4;
    EXPECT_EQ(crc32(0, body, uInt(length + 4)), number(at + 8 + length));
    std::string kind = png.substr(at + 4, 4);
    if (kind == "IHDR") {
      EXPECT_EQ(number(at + 8), width);
      EXPECT_EQ(number(at + 12), height);
      EXPECT_EQ(png[at + 17], channels == 1 ? 0 : 2);
    }
    if (kind == "IDAT") packed += png.substr(at + 8, length);
    at += length + 12;
  }
  int64_t stride = width * channels;
  std::vector<uint8_t> raw(size_t((stride + 1) * height)), out(size_t(stride * height));
  uLongf size = raw.size();
  EXPECT_EQ(uncompress(raw.data(), &size, reinterpret_cast<const Bytef*>(packed.data()), packed.size()),
            Z_OK);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < stride; ++x) {
      auto at = [&](int64_t row, int64_t column) {
        return row < 0 || column < 0 ? 0 : int(out[size_t(row * stride + column)]);
      };
      int left = at(y, x - channels), up = at(y - 1, x), corner = x < channels ? 0 : at(y - 1, x - channels);
      int p = left + up - corner, filter = raw[size_t(y * (stride + 1))];
      int paeth = std::abs(p - left) <= std::abs(p - up) && std::abs(p - left) <= std::abs(p - corner) ? left
                  : std::abs(p - up) <= std::abs(p - corner)                                           ? up
                                                             : corner;
      int predicted[5] = {0, left, up, (left + up) / 2, paeth};
      out[size_t(y * stride + x)] = uint8_t(raw[size_t(y * (stride + 1) + x + 1)] + predicted[filter]);
    }
  }
  return out;
}

TEST(Png, PixelsComeBack) {
  for (int channels : {1, 3}) {
    std::vector<uint8_t> pixels(size_t(7 * 5 * channels));
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(i * i * 31 + i);
    EXPECT_EQ(decode_png(encode_png(pixels, 7, 5, channels), 7, 5, channels), pixels);
  }
}

TEST(Base64, KnownVectors) {  // RFC 4648, section 10
  EXPECT_EQ(encode_base64(""), "");
  EXPECT_EQ(encode_base64("f"), "Zg==");
  EXPECT_EQ(encode_base64("fo"), "Zm8=");
  EXPECT_EQ(encode_base64("foo"), "Zm9v");
  EXPECT_EQ(encode_base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(encode_base64("\xff\xfe\xfd"), "//79");
}

Table example_table() {
  Table table{.columns = {"mixer", "top-1", "layers"}, .caption = "Runs"};
  table.add({"bilstm | a_b", Cell::percent(0.9345), 2});
  table.add({"no-op, \"kept\"", Cell::missing(), 12});
  table.highlighted = 0;
  return table;
}

TEST(Table, Text) {
  EXPECT_EQ(to_text(example_table()),
            "Runs\n"
            "mixer           top-1  layers\n"
            "-------------  ------  ------\n"
            "bilstm | a_b   93.5 %       2\n"
            "no-op, \"kept\"       \xe2\x80\x93      12\n");
}

TEST(Table, Markdown) {
  EXPECT_EQ(to_markdown(example_table()),
            "| mixer | top-1 | layers |\n"
            "|---|---:|---:|\n"
            "| **bilstm \\| a\\_b** | **93.5 %** | **2** |\n"
            "| no-op, \"kept\" | \xe2\x80\x93 | 12 |\n");
}

TEST(Table, CsvIsExact) {
  EXPECT_EQ(to_csv(example_table()),
            "mixer,top-1,layers\nbilstm | a_b,0.9345,2\n\"no-op, \"\"kept\"\"\",,12\n");
  Table table{.columns = {"x"}};
  table.add({Cell(1.0 / 3.0, 2)});
  EXPECT_EQ(to_csv(table), "x\n0.3333333333333333\n");
}

TEST(Html, IsWholeEscapedAndNeedsNoNetwork) {
  HtmlReport report("A <script>alert(1)</script> & \"title\"", "sub");
  for (const char* title : {"One", "Two", "Three <b>"}) report.section(title);
  report.section("Small", 3);
  report.paragraph("a < b & c");
  report.note("careful <i>");
  report.highlights({{"93 %", "top-1 <x>"}});
  report.list({"<li>"});
  report.code("train a=<b>");
  report.table(example_table());
  report.figure(bar_chart({.title = "<t>"}, {"<c>"}, {{"s", {1}, {}}}), "cap <x>", example_table());
  report.images({{encode_png({1, 2, 3}, 1, 1, 3), 10, 10, "alt \"x\"", "<cap>"}}, "images");
  std::string page = report.str();
  EXPECT_EQ(markup_problem(page), "");
  for (const char* bad : {"<script", "<i>", "<b>", "<li><li>", "src=\"http", "href=\"http", "url("})
    EXPECT_EQ(page.find(bad), std::string::npos) << bad;
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
  EXPECT_NE(page.find("<a href=\"#s3\">Three &lt;b&gt;</a>"), std::string::npos);
  EXPECT_NE(page.find("src=\"data:image/png;base64,iVBOR"), std::string::npos);
  TempFolder folder;
  report.write(folder / "report.html");
  EXPECT_EQ(read_bytes(folder / "report.html"), page);
}

}  // namespace
}  // namespace occam
