#include "core/config_visit.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/check.h"

namespace occam::config_detail {
namespace {

std::string at(const std::string& place, const std::string& path) {
  if (place.empty()) return path.empty() ? "" : path + ": ";
  return path.empty() ? place + ": " : place + ": " + path + ": ";
}

/// The whole text as a number, or nothing. A leading '+' is YAML but not from_chars.
template <class T>
std::optional<T> parse_number(std::string_view text, std::errc* error = nullptr) {
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);
  T value{};
  auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end != text.data() + text.size()) return std::nullopt;
  if (error) *error = code;
  return code == std::errc() ? std::optional<T>(value) : std::nullopt;
}

template <class T>
T read_integer(const ConfigNode& node, const std::string& path, const Rules& rules, T min, T max) {
  std::string expected = describe_type("a whole number", rules);
  if (!node.is_scalar() || node.is_text) fail_value(node, path, expected);
  std::errc error{};
  std::optional<T> value = parse_number<T>(node.text, &error);
  if (!value && error != std::errc::result_out_of_range) fail_value(node, path, expected);
  if (!value || *value < min || *value > max)
    fail_value(node, path, fmt::format("{}, {} to {}", expected, min, max));
  if (!rules.range.contains(double(*value))) fail_value(node, path, expected);
  return *value;
}

}  // namespace

std::string join_path(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}

void fail_value(const ConfigNode& node, const std::string& path, const std::string& expected) {
  fail(ErrorKind::usage,
       fmt::format("{}expected {}, found {}", at(node.where(), path), expected, node.found()));
}

void run_check(const ConfigNode& node, const std::string& path, void (*check)(const void*),
               const void* config) {
  try {
    check(config);
  } catch (const Error& e) {
    throw Error(e.kind(), at(node.where(), path) + e.what());
  }
}

std::string describe_type(const char* base, const Rules& rules) {
  if (!rules.choices.empty()) return fmt::format("one of {}", fmt::join(rules.choices, ", "));
  std::string range = rules.range.str();
  return range.empty() ? base : fmt::format("{} {}", base, range);
}

bool read_bool(const ConfigNode& node, const std::string& path) {
  bool yes = node.text == "true", no = node.text == "false";
  if (!node.is_scalar() || node.is_text || (!yes && !no)) fail_value(node, path, "true or false");
  return yes;
}

int64_t read_signed(const ConfigNode& node, const std::string& path, const Rules& rules, int64_t min,
                    int64_t max) {
  return read_integer<int64_t>(node, path, rules, min, max);
}

uint64_t read_unsigned(const ConfigNode& node, const std::string& path, const Rules& rules, uint64_t max) {
  return read_integer<uint64_t>(node, path, rules, 0, max);
}

double read_double(const ConfigNode& node, const std::string& path, const Rules& rules) {
  std::string expected = describe_type("a number", rules);
  if (!node.is_scalar() || node.is_text) fail_value(node, path, expected);
  std::optional<double> value = parse_number<double>(node.text);
  if (!value || !std::isfinite(*value) || !rules.range.contains(*value)) fail_value(node, path, expected);
  return *value;
}

std::string read_text(const ConfigNode& node, const std::string& path, const Rules& rules) {
  if (!node.is_scalar()) fail_value(node, path, describe_type("a text", rules));
  const auto& choices = rules.choices;
  if (!choices.empty() && std::find(choices.begin(), choices.end(), node.text) == choices.end()) {
    std::string nearest = nearest_name(node.text, choices);
    fail_value(node, path, describe_type("a text", rules) + (nearest.empty() ? "" : " (" + nearest + "?)"));
  }
  return node.text;
}

void refuse_unknown(const ConfigNode& node, const std::string& path, std::span<const std::string> known) {
  for (const ConfigNode& item : node.items) {
    if (std::find(known.begin(), known.end(), item.key) != known.end()) continue;
    fail(ErrorKind::usage, fmt::format("{}unknown key; {}", at(item.key_where(), join_path(path, item.key)),
                                       name_hint(item.key, known)));
  }
}

ConfigNode scalar_node(std::string text, bool is_text) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::scalar;
  node.text = std::move(text);
  node.is_text = is_text;
  return node;
}

std::string number_text(double value) { return fmt::format("{}", value); }
std::string number_text(float value) { return fmt::format("{}", value); }

}  // namespace occam::config_detail
