#pragma once
// How a struct of settings describes itself, with nothing of YAML or JSON:
//
//   struct TrainConfig {
//     int64_t epochs = 100;
//     std::string optimizer = "adamw";
//     template <class V> void visit(V& v) {
//       v("epochs", epochs, "passes over the training images", Range{1, 1e9});
//       v("optimizer", optimizer, "update rule", Choices{"adamw", "sgd"});
//     }
//     void check() const;  // optional: throws Error{usage} for what no single key can say
//   };
//
// Members may be bool, integers, float, double, std::string, structs like this one, and std::optional,
// std::vector and std::map<std::string, T> of these; config_visit.h reads and writes them.
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace occam {

/// Allowed values of a number, or of each number in a list.
struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false;  // min itself is not allowed

  static Range at_least(double low) { return {.min = low}; }
  static Range above(double low) { return {.min = low, .above_min = true}; }
  bool contains(double value) const { return (above_min ? value > min : value >= min) && value <= max; }
  /// "from 0 to 1", "at least 1", "above 0"
  std::string str() const;
};

/// Allowed values of a text, or of each text in a list.
struct Choices {
  std::vector<std::string> names;
  Choices(std::initializer_list<const char*> list) : names(list.begin(), list.end()) {}
  explicit Choices(std::vector<std::string> list) : names(std::move(list)) {}
};

/// Marks the member that a value given in place of the whole mapping goes to: with it on `name`, `model:
/// deit_tiny` means `model: {name: deit_tiny}`. At most one in a struct.
struct Shorthand {};

/// The candidate with the fewest edits from `name`, or "" when none is near enough to be a slip of the
/// keyboard.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);
/// "did you mean 'epochs'?", or "known: batch, epochs, lr" when nothing is near: the end of an error about a
/// name.
std::string name_hint(std::string_view name, std::span<const std::string> candidates);

}  // namespace occam
