#include "apps/bench/columns.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

namespace occam {
namespace {

/// A column of the terminal's table, where some line has it.
struct Column {
  const char* key;
  const char* title;
  int digits = -1;  // of a number; -1: text
  double scale = 1;
};
constexpr Column kColumns[] = {{"row", "row"},
                               {"op", "op"},
                               {"ladder", "ladder"},
                               {"step", "step"},
                               {"shape", "shape"},
                               {"pass", "pass"},
                               {"model", "model"},
                               {"mixer", "mixer"},
                               {"tokens", "tokens", 0},
                               {"what", "what"},
                               {"B", "batch", 0},
                               {"precision", "precision"},
                               {"ms", "ms", 3},
                               {"ms_low", "10 %", 3},
                               {"ms_high", "90 %", 3},
                               {"img_s", "images/s", 0},
                               {"mfu_tflops", "TFLOP/s", 2},
                               {"ratio_to_infer", "x inference", 2},
                               {"gflop_s", "GFLOP/s", 0},
                               {"gb_s", "GB/s", 0},
                               {"floor_ms", "floor ms", 3},
                               {"op_traffic_ms", "op traffic ms", 3},
                               {"share_of_ceiling", "% of ceiling", 1, 100},
                               {"share_of_roofline", "% of roofline", 1, 100},
                               {"bound", "bound"},
                               {"by", "by"},
                               {"peak_gb", "peak GB", 2},
                               {"params", "parameters", 0},
                               {"macs", "M multiply-adds", 1, 1e-6},
                               {"depth", "depth", 0},
                               {"skipped", "left out: why"}};

}  // namespace

Table table_of(const std::vector<Json>& lines) {
  std::vector<Column> used;
  for (const Column& column : kColumns) {
    auto differs = [&](const Json& line) { return line.contains(column.key); };
    // What a line is, is told by its row, op or step where it has one.
    const bool said = std::string_view(column.key) == "what" && !lines.empty() &&
                      (lines[0].contains("row") || lines[0].contains("op") || lines[0].contains("step") ||
                       lines[0].contains("mixer"));
    if (!said && std::any_of(lines.begin(), lines.end(), differs)) used.push_back(column);
  }
  Table table;
  for (const Column& column : used) table.columns.emplace_back(column.title);
  for (const Json& line : lines) {
    std::vector<Cell> cells;
    for (const Column& column : used) {
      if (!line.contains(column.key)) {
        cells.push_back(Cell::missing());
      } else if (column.digits < 0) {
        cells.emplace_back(line.at(column.key).get<std::string>());
      } else {
        cells.emplace_back(line.at(column.key).get<double>() * column.scale, column.digits);
      }
    }
    table.add(std::move(cells));
  }
  return table;
}

}  // namespace occam
