#include "nn/summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace occam {

namespace {

/// 1234567 as "1,234,567": exact and readable.
std::string grouped(int64_t n) {
  std::string text = std::to_string(n);
  for (int at = int(text.size()) - 3; at > 0; at -= 3) text.insert(size_t(at), ",");
  return text;
}

}  // namespace

std::string summary(const Plan& plan, int max_depth) {
  std::vector<std::array<std::string, 5>> lines{{"module", "output", "parameters", "multiply-adds", "bytes"}};
  for (const Plan::Row& row : plan.rows()) {
    if (row.depth > max_depth) continue;
    std::string name = row.path.empty() ? std::string("model") : row.path;
    // Below its parent only what is new of the name is shown.
    for (const Plan::Row& above : plan.rows())
      if (!above.path.empty() && row.path.starts_with(above.path + "."))
        name = row.path.substr(above.path.size() + 1);
    lines.push_back({std::string(size_t(2 * row.depth), ' ') + name + " " + row.kind, row.output.str(),
                     grouped(row.params), grouped(row.macs), grouped(4 * row.params)});
  }
  std::array<size_t, 5> width{};
  for (const auto& line : lines)
    for (size_t i = 0; i < line.size(); ++i) width[i] = std::max(width[i], line[i].size());
  std::string text;
  for (const auto& line : lines) {
    text += fmt::format("{:<{}}  {:<{}}", line[0], width[0], line[1], width[1]);
    for (size_t i = 2; i < line.size(); ++i) text += fmt::format("  {:>{}}", line[i], width[i]);
    text += '\n';
  }
  return text;
}

}  // namespace occam
