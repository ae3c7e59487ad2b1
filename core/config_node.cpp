#include "core/config_node.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "core/check.h"

namespace occam {
namespace {

using Kind = ConfigNode::Kind;

std::string place(const std::string& source, int line, int column) {
  return line > 0 ? fmt::format("{}:{}:{}", source, line, column) : source;
}

/// Splits off the part before the first dot.
std::string_view pop_part(std::string_view& path) {
  size_t dot = path.find('.');
  std::string_view part = path.substr(0, dot);
  path = dot == std::string_view::npos ? std::string_view{} : path.substr(dot + 1);
  return part;
}

ConfigNode* child(ConfigNode& node, std::string_view part) {
  if (!node.is_list()) return node.find(part);
  size_t index = 0;
  auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
  bool whole = error == std::errc() && end == part.data() + part.size();
  return whole && index < node.items.size() ? &node.items[index] : nullptr;
}

void compare(const ConfigNode* from, const ConfigNode* to, const std::string& path,
             std::vector<std::string>& out) {
  auto is_map = [](const ConfigNode* n) { return n && n->is_map(); };
  if (is_map(from) || is_map(to)) {
    std::vector<std::string> keys;
    for (const ConfigNode* node : {from, to}) {
      if (!is_map(node)) continue;
      for (const ConfigNode& item : node->items)
        if (std::find(keys.begin(), keys.end(), item.key) == keys.end()) keys.push_back(item.key);
    }
    for (const std::string& key : keys) {
      compare(is_map(from) ? from->find(key) : nullptr, is_map(to) ? to->find(key) : nullptr,
              path.empty() ? key : path + "." + key, out);
    }
    return;
  }
  auto text = [](const ConfigNode* n) {
    return n ? dump_json_line(config_to_json(*n)) : std::string("(absent)");
  };
  std::string a = text(from), b = text(to);
  if (a != b) out.push_back(fmt::format("{}: {} -> {}", path, a, b));
}

}  // namespace

const ConfigNode* ConfigNode::find(std::string_view name) const {
  if (kind != Kind::map) return nullptr;
  for (const ConfigNode& item : items)
    if (item.key == name) return &item;
  return nullptr;
}

ConfigNode* ConfigNode::find(std::string_view name) {
  return const_cast<ConfigNode*>(static_cast<const ConfigNode*>(this)->find(name));
}

std::string ConfigNode::where() const { return place(source, line, column); }
std::string ConfigNode::key_where() const { return place(source, key_line, key_column); }

std::string ConfigNode::found() const {
  if (kind == Kind::null) return "nothing";
  if (kind == Kind::list) return "a list";
  if (kind == Kind::map) return "a mapping";
  return is_text ? fmt::format("the text \"{}\"", text) : fmt::format("'{}'", text);
}

ConfigNode config_from_json(const Json& value, const std::string& source) {
  ConfigNode node;
  node.source = source;
  if (value.is_structured()) {
    node.kind = value.is_object() ? Kind::map : Kind::list;
    for (auto item = value.begin(); item != value.end(); ++item) {
      node.items.push_back(config_from_json(*item, source));
      if (value.is_object()) node.items.back().key = item.key();
    }
  } else if (!value.is_null()) {
    node.kind = Kind::scalar;
    node.is_text = value.is_string();
    node.text = value.is_string() ? value.get<std::string>() : dump_json_line(value);
  }
  return node;
}

Json config_to_json(const ConfigNode& node) {
  switch (node.kind) {
    case Kind::null:
      return nullptr;
    case Kind::list: {
      Json list = Json::array();
      for (const ConfigNode& item : node.items) list.push_back(config_to_json(item));
      return list;
    }
    case Kind::map: {
      Json object = Json::object();
      for (const ConfigNode& item : node.items) object[item.key] = config_to_json(item);
      return object;
    }
    case Kind::scalar:
      break;
  }
  if (node.is_text) return node.text;
  // A number or boolean is JSON as it stands; what is not was a text without quotes.
  Json value = Json::parse(node.text, nullptr, false);
  return value.is_discarded() || value.is_structured() ? Json(node.text) : value;
}

void set_config(ConfigNode& root, std::string_view path, ConfigNode value) {
  ConfigNode* node = &root;
  std::string_view rest = path;
  while (!rest.empty()) {
    std::string_view part = pop_part(rest);
    std::string_view so_far = path.substr(0, size_t(part.data() - path.data()));
    if (node->is_null()) {
      node->kind = Kind::map;
      if (node->source.empty()) node->source = value.source;
    }
    OCCAM_CHECK(node->is_map() || node->is_list(), ErrorKind::usage,
                "{}: '{}' is {} ({}), so nothing can be set below it; write it as a mapping", value.where(),
                so_far.substr(0, so_far.size() - 1), node->found(), node->where());
    ConfigNode* next = child(*node, part);
    if (!next) {
      OCCAM_CHECK(node->is_map(), ErrorKind::usage, "{}: the list '{}' ({}) has no item '{}', only 0 to {}",
                  value.where(), so_far.substr(0, so_far.size() - 1), node->where(), part,
                  int64_t(node->items.size()) - 1);
      ConfigNode item;
      item.key = part;
      item.source = value.source;
      node->items.push_back(std::move(item));
      next = &node->items.back();
    }
    node = next;
  }
  value.key = node->key;
  *node = std::move(value);
}

const ConfigNode* find_config(const ConfigNode& root, std::string_view path) {
  ConfigNode* node = const_cast<ConfigNode*>(&root);
  while (node && !path.empty()) node = child(*node, pop_part(path));
  return node;
}

std::vector<std::string> config_changes(const ConfigNode& from, const ConfigNode& to) {
  std::vector<std::string> out;
  compare(&from, &to, "", out);
  return out;
}

}  // namespace occam
