#pragma once
// One self-contained report page: no script, no network (a content security policy says so), readable without
// styles.
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/report/table.h"

namespace occam {

struct ReportImage {
  std::string png;                // bytes, from encode_png
  int64_t width = 0, height = 0;  // as shown, in CSS pixels
  std::string alt;                // what it shows, for readers who do not see it
  std::string caption;            // short
};

/// All texts are plain: they are escaped here.
class HtmlReport {
 public:
  HtmlReport(std::string title, std::string subtitle = "");

  /// A heading, with an entry in the list of contents for level 2.
  void section(const std::string& title, int level = 2);
  void paragraph(const std::string& text);
  /// A warning or reservation that must not be overlooked.
  void note(const std::string& text);
  /// A row of large figures: {"93.4 %", "top-1 of the teacher"}.
  void highlights(const std::vector<std::pair<std::string, std::string>>& values);
  void list(const std::vector<std::string>& items);
  void code(const std::string& text);
  void table(const Table& table);
  /// `svg` is a chart of svg.h. `data`, when it has columns, can be unfolded below it: the chart as text.
  void figure(const std::string& svg, const std::string& caption, const Table& data = {});
  /// Pictures in a row that wraps.
  void images(const std::vector<ReportImage>& images, const std::string& caption);

  std::string str() const;
  /// Atomically.
  void write(const std::filesystem::path& path) const;

 private:
  std::string title_, subtitle_, body_;
  std::vector<std::pair<std::string, std::string>> contents_;  // id, title
};

}  // namespace occam
