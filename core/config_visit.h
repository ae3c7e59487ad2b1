#pragma once
// Moves settings between a struct that describes itself (config.h) and a tree (config_node.h).
#include <map>
#include <optional>
#include <type_traits>

#include "core/config.h"
#include "core/config_node.h"

namespace occam {

/// Sets what `node` names and leaves the rest. Throws Error{usage} that begins with the place and the key for
/// an unknown key (with the nearest known one), a wrong type (with what was found) and a value out of range.
template <class T>
void read_config(const ConfigNode& node, T& config);
/// Every value with its key, help and type.
template <class T>
ConfigNode describe_config(const T& config);

namespace config_detail {

struct Rules {
  Range range;
  std::vector<std::string> choices;
  bool shorthand = false;

  template <class... R>
  explicit Rules(const R&... rules) {
    (add(rules), ...);
  }
  void add(const Range& r) { range = r; }
  void add(const Choices& c) { choices = c.names; }
  void add(const Shorthand&) { shorthand = true; }
};

struct Probe {
  template <class... A>
  void operator()(const A&...) {}
};
template <class T>
concept Described = requires(T& t, Probe& p) {
  t.visit(p);
};
template <class T>
concept Checked = requires(const T& t) {
  t.check();
};
template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};
template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};
template <class T>
struct IsMap : std::false_type {};
template <class T>
struct IsMap<std::map<std::string, T>> : std::true_type {};
template <class T>
concept Integer = std::is_integral_v<T> && !std::is_same_v<T, bool>;

std::string join_path(const std::string& path, std::string_view key);
[[noreturn]] void fail_value(const ConfigNode& node, const std::string& path, const std::string& expected);
/// Runs `check` and puts the place in front of its Error's text.
void run_check(const ConfigNode& node, const std::string& path, void (*check)(const void*),
               const void* config);
std::string describe_type(const char* base, const Rules& rules);

bool read_bool(const ConfigNode& node, const std::string& path);
int64_t read_signed(const ConfigNode& node, const std::string& path, const Rules& rules, int64_t min,
                    int64_t max);
uint64_t read_unsigned(const ConfigNode& node, const std::string& path, const Rules& rules, uint64_t max);
double read_double(const ConfigNode& node, const std::string& path, const Rules& rules);
std::string read_text(const ConfigNode& node, const std::string& path, const Rules& rules);
void refuse_unknown(const ConfigNode& node, const std::string& path, std::span<const std::string> known);
ConfigNode scalar_node(std::string text, bool is_text);
std::string number_text(double value);
std::string number_text(float value);

template <class T>
void read_value(const ConfigNode& node, T& out, const std::string& path, const Rules& rules);

/// Visitor: takes each member's value from a map.
class MapReader {
 public:
  MapReader(const ConfigNode& node, const std::string& path) : node_(node), path_(path) {}
  template <class T, class... R>
  void operator()(const char* key, T& member, const char*, const R&... rules) {
    known_.emplace_back(key);
    if (const ConfigNode* child = node_.find(key))
      read_value(*child, member, join_path(path_, key), Rules(rules...));
  }
  void finish() const { refuse_unknown(node_, path_, known_); }

 private:
  const ConfigNode& node_;
  const std::string& path_;
  std::vector<std::string> known_;
};

/// Visitor: gives a value that is no map to the member marked Shorthand.
class ShorthandReader {
 public:
  ShorthandReader(const ConfigNode& node, const std::string& path) : node_(node), path_(path) {}
  template <class T, class... R>
  void operator()(const char* key, T& member, const char*, const R&... rules) {
    keys_ += keys_.empty() ? key : std::string(", ") + key;
    Rules all(rules...);
    if (!all.shorthand) return;
    found_ = true;
    read_value(node_, member, path_, all);
  }
  void finish() const {
    if (!found_) fail_value(node_, path_, "a mapping with keys " + keys_);
  }

 private:
  const ConfigNode& node_;
  const std::string& path_;
  std::string keys_;
  bool found_ = false;
};

template <class T>
void read_value(const ConfigNode& node, T& out, const std::string& path, const Rules& rules) {
  if constexpr (IsOptional<T>::value) {
    out.reset();
    if (node.is_null()) return;
    typename T::value_type value{};
    read_value(node, value, path, rules);
    out = std::move(value);
  } else if constexpr (IsVector<T>::value) {
    out.clear();
    // A value in place of a list is a list of one.
    std::span<const ConfigNode> items =
        node.is_list() ? std::span<const ConfigNode>(node.items) : std::span(&node, 1);
    for (size_t i = 0; i < items.size(); ++i) {
      typename T::value_type value{};
      read_value(items[i], value, node.is_list() ? join_path(path, std::to_string(i)) : path, rules);
      out.push_back(std::move(value));
    }
  } else if constexpr (IsMap<T>::value) {
    if (!node.is_map()) fail_value(node, path, "a mapping");
    out.clear();
    for (const ConfigNode& item : node.items)
      read_value(item, out[item.key], join_path(path, item.key), rules);
  } else if constexpr (Described<T>) {
    // `section:` with nothing below it keeps the defaults.
    if (node.is_map() || node.is_null()) {
      MapReader reader(node, path);
      out.visit(reader);
      reader.finish();
    } else {
      ShorthandReader reader(node, path);
      out.visit(reader);
      reader.finish();
    }
    if constexpr (Checked<T>) {
      run_check(
          node, path, [](const void* config) { static_cast<const T*>(config)->check(); }, &out);
    }
  } else if constexpr (std::is_same_v<T, bool>) {
    out = read_bool(node, path);
  } else if constexpr (std::is_same_v<T, std::string>) {
    out = read_text(node, path, rules);
  } else if constexpr (std::is_floating_point_v<T>) {
    out = T(read_double(node, path, rules));
  } else if constexpr (std::is_signed_v<T>) {
    static_assert(Integer<T>, "a setting of this type cannot be read; see config.h for those that can");
    using Limits = std::numeric_limits<T>;
    out = T(read_signed(node, path, rules, Limits::min(), Limits::max()));
  } else {
    static_assert(Integer<T>, "a setting of this type cannot be read; see config.h for those that can");
    out = T(read_unsigned(node, path, rules, std::numeric_limits<T>::max()));
  }
}

template <class T>
std::string type_name(const Rules& rules) {
  if constexpr (IsOptional<T>::value)
    return type_name<typename T::value_type>(rules) + " or null";
  else if constexpr (IsVector<T>::value)
    return "list of " + type_name<typename T::value_type>(rules);
  else if constexpr (IsMap<T>::value)
    return "mapping to " + type_name<typename T::mapped_type>(rules);
  else if constexpr (Described<T>)
    return "mapping";
  else if constexpr (std::is_same_v<T, bool>)
    return "true or false";
  else if constexpr (std::is_same_v<T, std::string>)
    return describe_type("text", rules);
  else if constexpr (std::is_floating_point_v<T>)
    return describe_type("number", rules);
  else
    return describe_type("whole number", rules);
}

template <class T>
ConfigNode describe_value(const T& value);

/// Visitor: appends each member to a map.
struct Describer {
  ConfigNode& map;
  template <class T, class... R>
  void operator()(const char* key, T& member, const char* help, const R&... rules) {
    map.items.push_back(describe_value(member));
    ConfigNode& item = map.items.back();
    item.key = key;
    item.help = help;
    item.type = type_name<T>(Rules(rules...));
  }
};

/// A default element where T holds structs, so that help can show their keys.
template <class T>
void describe_element(ConfigNode& node) {
  if constexpr (Described<T>) node.element.push_back(describe_value(T{}));
}

template <class T>
ConfigNode describe_value(const T& value) {
  ConfigNode node;
  if constexpr (IsOptional<T>::value) {
    if (value) node = describe_value(*value);
    describe_element<typename T::value_type>(node);
  } else if constexpr (IsVector<T>::value) {
    node.kind = ConfigNode::Kind::list;
    for (const auto& item : value) node.items.push_back(describe_value<typename T::value_type>(item));
    describe_element<typename T::value_type>(node);
  } else if constexpr (IsMap<T>::value) {
    node.kind = ConfigNode::Kind::map;
    for (const auto& [key, item] : value) {
      node.items.push_back(describe_value(item));
      node.items.back().key = key;
    }
    describe_element<typename T::mapped_type>(node);
  } else if constexpr (Described<T>) {
    node.kind = ConfigNode::Kind::map;
    Describer describer{node};
    const_cast<T&>(value).visit(
        describer);  // one visit serves reading and describing; a Describer changes nothing
  } else if constexpr (std::is_same_v<T, bool>) {
    node = scalar_node(value ? "true" : "false", false);
  } else if constexpr (std::is_same_v<T, std::string>) {
    node = scalar_node(value, true);
  } else if constexpr (std::is_floating_point_v<T>) {
    node = scalar_node(number_text(value), false);
  } else {
    node = scalar_node(std::to_string(value), false);
  }
  return node;
}

}  // namespace config_detail

template <class T>
void read_config(const ConfigNode& node, T& config) {
  config_detail::read_value(node, config, "", config_detail::Rules());
}
template <class T>
ConfigNode describe_config(const T& config) {
  return config_detail::describe_value(config);
}

}  // namespace occam
