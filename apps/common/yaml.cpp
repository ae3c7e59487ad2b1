#include "apps/common/yaml.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/io/mmap.h"

namespace occam {
namespace {

constexpr size_t kMaxBytes = size_t(4) << 20;
constexpr int kMaxDepth = 64;
constexpr int64_t kMaxNodes = 20'000;

class Converter {
 public:
  explicit Converter(const std::string& source) : source_(source) {}

  ConfigNode convert(const YAML::Node& yaml, const YAML::Mark& fallback, int depth = 0) {
    const YAML::Mark mark = yaml.Mark().is_null() ? fallback : yaml.Mark();
    ConfigNode node;
    node.source = source_;
    if (!mark.is_null()) {
      node.line = mark.line + 1;
      node.column = mark.column + 1;
    }
    // Aliases may refer to what holds them, or double at every level.
    OCCAM_CHECK(depth <= kMaxDepth && ++count_ <= kMaxNodes, ErrorKind::usage,
                "{}: nested deeper than {} levels, or more than {} values", node.where(), kMaxDepth,
                kMaxNodes);
    if (yaml.IsScalar()) {
      node.kind = ConfigNode::Kind::scalar;
      node.text = yaml.Scalar();
      node.is_text = yaml.Tag() == "!";  // yaml-cpp's mark of quotes and block scalars
    } else if (yaml.IsSequence()) {
      node.kind = ConfigNode::Kind::list;
      for (const YAML::Node& item : yaml) node.items.push_back(convert(item, mark, depth + 1));
    } else if (yaml.IsMap()) {
      node.kind = ConfigNode::Kind::map;
      for (const auto& item : yaml) add_item(node, item.first, item.second, depth);
    }
    return node;
  }

 private:
  void add_item(ConfigNode& map, const YAML::Node& key, const YAML::Node& value, int depth) {
    ConfigNode name = convert(key, YAML::Mark::null_mark(), depth + 1);
    OCCAM_CHECK(name.is_scalar(), ErrorKind::usage, "{}: a key must be a text, found {}", name.where(),
                name.found());
    if (const ConfigNode* earlier = map.find(name.text)) {
      fail(ErrorKind::usage, fmt::format("{}: key '{}' is there twice (first at {}); remove one",
                                         name.where(), name.text, earlier->key_where()));
    }
    ConfigNode item = convert(value, key.Mark(), depth + 1);
    item.key = name.text;
    item.key_line = name.line;
    item.key_column = name.column;
    map.items.push_back(std::move(item));
  }

  const std::string& source_;
  int64_t count_ = 0;
};

/// True when every YAML reader takes this text, without quotes, for a text.
bool is_plain(const std::string& text) {
  static constexpr std::array<std::string_view, 9> kOther{"null", "true", "false", "yes", "no",
                                                          "on",   "off",  "y",     "n"};
  std::string lower;
  for (char c : text) lower += char(std::tolower(uint8_t(c)));
  auto letter = [](char c) { return (c >= 'a' && c <= 'z') || c == '_' || c == '/'; };
  auto inner = [&](char c) {
    return letter(c) || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '+';
  };
  return !lower.empty() && letter(lower[0]) && std::all_of(lower.begin(), lower.end(), inner) &&
         std::find(kOther.begin(), kOther.end(), lower) == kOther.end();
}

std::string quoted(const std::string& text) { return is_plain(text) ? text : dump_json_line(Json(text)); }

class Dumper {
 public:
  explicit Dumper(bool with_help) : with_help_(with_help) {}

  void map(const ConfigNode& node, size_t indent) {
    bool first = true;
    for (const ConfigNode& item : node.items) {
      // The first key of a map in a list stands behind its dash.
      std::string margin(first && after_dash_ ? 0 : indent, ' ');
      after_dash_ = first = false;
      std::string help =
          with_help_ && !item.help.empty() ? fmt::format("# {} ({})", item.help, item.type) : "";
      std::string head = margin + quoted(item.key) + ":";
      if (is_block(item)) {
        out += head + (help.empty() ? "" : "  " + help) + "\n";
        block(item, indent + 2);
      } else {
        std::string line = head + " " + flow(item);
        out += help.empty() ? line : fmt::format("{:<40} {}", line, help);
        out += "\n";
      }
    }
  }

  void block(const ConfigNode& node, size_t indent) {
    if (node.is_map()) return map(node, indent);
    for (const ConfigNode& item : node.items) {
      out += std::string(indent, ' ') + "- ";
      if (is_block(item) && item.is_map()) {
        after_dash_ = true;
        map(item, indent + 2);
      } else {
        out += flow(item) + "\n";
      }
    }
  }

  /// True for what takes lines of its own.
  static bool is_block(const ConfigNode& node) {
    if (node.items.empty()) return false;
    return node.is_map() || std::any_of(node.items.begin(), node.items.end(),
                                        [](const ConfigNode& item) { return item.is_map(); });
  }

  static std::string flow(const ConfigNode& node) {
    if (node.is_null()) return "null";
    if (node.is_scalar()) return node.is_text ? quoted(node.text) : node.text;
    std::string text;
    for (const ConfigNode& item : node.items) {
      if (!text.empty()) text += ", ";
      text += (node.is_map() ? quoted(item.key) + ": " : "") + flow(item);
    }
    return node.is_map() ? "{" + text + "}" : "[" + text + "]";
  }

  std::string out;

 private:
  bool with_help_;
  bool after_dash_ = false;
};

}  // namespace

ConfigNode parse_yaml(std::string_view text, const std::string& source) {
  try {
    std::vector<YAML::Node> documents = YAML::LoadAll(std::string(text));
    OCCAM_CHECK(documents.size() <= 1, ErrorKind::usage, "{}: holds {} documents; one is expected", source,
                documents.size());
    if (!documents.empty()) return Converter(source).convert(documents[0], YAML::Mark::null_mark());
  } catch (const YAML::Exception& e) {
    std::string place =
        e.mark.is_null() ? source : fmt::format("{}:{}:{}", source, e.mark.line + 1, e.mark.column + 1);
    fail(ErrorKind::usage, fmt::format("{}: not valid YAML: {}", place, e.msg));
  }
  ConfigNode nothing;
  nothing.source = source;
  return nothing;
}

ConfigNode read_yaml(const std::filesystem::path& path) {
  try {
    MappedFile file(path);
    OCCAM_CHECK(file.size() <= kMaxBytes, ErrorKind::usage,
                "{}: {} bytes is too large for a config (at most {})", path.string(), file.size(), kMaxBytes);
    return parse_yaml({reinterpret_cast<const char*>(file.data()), file.size()}, path.string());
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::input) throw;
    fail(ErrorKind::usage, fmt::format("config: {}", e.what()));
  }
}

std::string dump_yaml(const ConfigNode& node, bool with_help) {
  Dumper dumper(with_help);
  if (!Dumper::is_block(node)) return Dumper::flow(node) + "\n";
  dumper.block(node, 0);
  return dumper.out;
}

}  // namespace occam
