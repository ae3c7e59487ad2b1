#include "core/report/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace occam {
namespace {

constexpr const char* kDash = "\xe2\x80\x93";  // en dash

/// Code points, which is the width on a terminal for the scripts in use here.
size_t width_of(std::string_view text) {
  return size_t(std::count_if(text.begin(), text.end(), [](char c) { return (uint8_t(c) & 0xC0) != 0x80; }));
}

std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '\n' || c == '\r' || c == '\t'; }, ' ');
  return text;
}

std::string escape_markdown(const std::string& text) {
  std::string out;
  for (char c : one_line(text)) {
    if (c == '|' || c == '\\' || c == '*' || c == '_' || c == '<' || c == '`') out += '\\';
    out += c;
  }
  return out;
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + "\"";
}

}  // namespace

Cell::Cell(int64_t value) : text(std::to_string(value)), exact(text), number(true) {}

Cell::Cell(double value, int digits) : number(true) {
  text = std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : kDash;
  exact = std::isfinite(value) ? fmt::format("{}", value) : "";
}

Cell Cell::missing() { return Cell(std::nan(""), 0); }

Cell Cell::percent(double fraction, int digits) {
  Cell cell(fraction, digits);
  if (std::isfinite(fraction)) cell.text = fmt::format("{:.{}f} %", fraction * 100, digits);
  return cell;
}

void Table::add(std::vector<Cell> row) {
  OCCAM_ASSERT(row.size() == columns.size());
  rows.push_back(std::move(row));
}

bool Table::is_numeric(size_t column) const {
  return !rows.empty() &&
         std::all_of(rows.begin(), rows.end(), [&](const auto& row) { return row[column].number; });
}

std::string to_text(const Table& table) {
  size_t count = table.columns.size();
  std::vector<size_t> widths(count);
  for (size_t c = 0; c < count; ++c) {
    widths[c] = width_of(one_line(table.columns[c]));
    for (const auto& row : table.rows) widths[c] = std::max(widths[c], width_of(one_line(row[c].text)));
  }
  std::string out = table.caption.empty() ? "" : table.caption + "\n";
  auto line = [&](auto&& text_of) {
    std::string text;
    for (size_t c = 0; c < count; ++c) {
      std::string cell = one_line(text_of(c));
      std::string space(widths[c] - width_of(cell), ' ');
      text += (c ? "  " : "") + (table.is_numeric(c) ? space + cell : cell + space);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  };
  line([&](size_t c) { return table.columns[c]; });
  line([&](size_t c) { return std::string(widths[c], '-'); });
  for (const auto& row : table.rows) line([&](size_t c) { return row[c].text; });
  return out;
}

std::string to_markdown(const Table& table) {
  std::string out = "|", rule = "|";
  for (size_t c = 0; c < table.columns.size(); ++c) {
    out += " " + escape_markdown(table.columns[c]) + " |";
    rule += table.is_numeric(c) ? "---:|" : "---|";
  }
  out += "\n" + rule + "\n";
  for (size_t r = 0; r < table.rows.size(); ++r) {
    out += "|";
    for (const Cell& cell : table.rows[r]) {
      const char* bold = int(r) == table.highlighted && !cell.text.empty() ? "**" : "";
      out += fmt::format(" {}{}{} |", bold, escape_markdown(cell.text), bold);
    }
    out += "\n";
  }
  return out;
}

std::string to_csv(const Table& table) {
  std::string out;
  for (size_t c = 0; c < table.columns.size(); ++c) out += (c ? "," : "") + csv_field(table.columns[c]);
  out += "\n";
  for (const auto& row : table.rows) {
    for (size_t c = 0; c < row.size(); ++c) out += (c ? "," : "") + csv_field(row[c].exact);
    out += "\n";
  }
  return out;
}

}  // namespace occam
