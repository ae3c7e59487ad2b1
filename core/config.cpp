#include "core/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace occam {
namespace {

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (optimal string
/// alignment).
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(last.begin(), last.end(), size_t(0));
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

}  // namespace

std::string Range::str() const {
  bool low = std::isfinite(min), high = std::isfinite(max);
  std::string from =
      above_min ? fmt::format("above {}", min) : fmt::format("{} {}", high ? "from" : "at least", min);
  if (low && high) return fmt::format("{} {} {}", from, above_min ? "and at most" : "to", max);
  if (high) return fmt::format("at most {}", max);
  return low ? from : "";
}

std::string nearest_name(std::string_view name, std::span<const std::string> candidates) {
  std::string best;
  size_t least = std::max<size_t>(1, name.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    // A long name is cut: its distance is far beyond the limit anyway, and the cost is quadratic.
    size_t distance = edit_distance(name.substr(0, 100), candidate);
    if (distance < least) {
      least = distance;
      best = candidate;
    }
  }
  return best;
}

std::string name_hint(std::string_view name, std::span<const std::string> candidates) {
  std::string nearest = nearest_name(name, candidates);
  if (!nearest.empty()) return fmt::format("did you mean '{}'?", nearest);
  return candidates.empty() ? "nothing is known here" : fmt::format("known: {}", fmt::join(candidates, ", "));
}

}  // namespace occam
