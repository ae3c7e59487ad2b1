#pragma once
// Settings as a tree: what a YAML file, the command line or a JSON text say before a struct takes them, and
// what a struct looks like on its way out.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/json.h"

namespace occam {

struct ConfigNode {
  enum class Kind : uint8_t { null, scalar, list, map };

  Kind kind = Kind::null;
  std::string key;                // in the parent map
  std::string text;               // of a scalar
  bool is_text = false;           // a scalar in quotes, or one that comes from a string member
  std::vector<ConfigNode> items;  // of a list or map

  // Where it was read: "config.yaml" with line and column from 1, or 0 when they are unknown.
  std::string source;
  int line = 0, column = 0;
  int key_line = 0, key_column = 0;

  // Filled in when a struct is described.
  std::string help, type;
  std::vector<ConfigNode> element;  // one default element of a list, map or optional of structs

  /// The item of a map under this key, or null.
  const ConfigNode* find(std::string_view name) const;
  ConfigNode* find(std::string_view name);
  /// "config.yaml:3:7", or only the source.
  std::string where() const;
  std::string key_where() const;
  /// For messages: "nothing", "'abc'", "a list", "a mapping".
  std::string found() const;

  bool is_null() const { return kind == Kind::null; }
  bool is_scalar() const { return kind == Kind::scalar; }
  bool is_list() const { return kind == Kind::list; }
  bool is_map() const { return kind == Kind::map; }
};

/// `source` names the text in errors.
ConfigNode config_from_json(const Json& value, const std::string& source);
Json config_to_json(const ConfigNode& node);

/// Sets `path` ("train.lr"; a number picks an item of a list) to `value`, making maps on the way. Throws
/// Error{usage} when something on the way is no map.
void set_config(ConfigNode& root, std::string_view path, ConfigNode value);
/// The node at `path`, or null.
const ConfigNode* find_config(const ConfigNode& root, std::string_view path);

/// "train.lr: 0.1 -> 0.2" for every value in which two trees differ.
std::vector<std::string> config_changes(const ConfigNode& from, const ConfigNode& to);

}  // namespace occam
