#pragma once
// Tables for the terminal, Markdown, CSV and (html.h) HTML.
#include <cstdint>
#include <string>
#include <vector>

namespace occam {

/// Text, or a number that is shown rounded and kept exact for CSV. A missing or non-finite number shows as a
/// dash.
struct Cell {
  Cell(std::string value) : text(std::move(value)), exact(text) {}
  Cell(const char* value) : Cell(std::string(value)) {}
  Cell(int64_t value);
  Cell(int value) : Cell(int64_t(value)) {}
  Cell(double value, int digits);
  static Cell missing();
  /// 0.9345 as "93.5 %"; CSV keeps the fraction.
  static Cell percent(double fraction, int digits = 1);

  std::string text, exact;
  bool number = false;
};

struct Table {
  std::vector<std::string> columns;
  std::vector<std::vector<Cell>> rows;
  std::string caption;
  int highlighted = -1;  // row shown in bold where the form allows it

  /// The row must have a cell for every column.
  void add(std::vector<Cell> row);
  /// A column is right-aligned when its cells are numbers (missing ones included).
  bool is_numeric(size_t column) const;
};

/// Aligned columns under a rule, two spaces apart.
std::string to_text(const Table& table);
std::string to_markdown(const Table& table);
/// RFC 4180 with exact numbers; a missing number is an empty field.
std::string to_csv(const Table& table);

}  // namespace occam
