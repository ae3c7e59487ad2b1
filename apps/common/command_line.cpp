#include "apps/common/command_line.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "apps/common/yaml.h"
#include "core/check.h"
#include "core/config.h"

namespace occam {
namespace {

bool is_yaml(const std::string& name) { return name.ends_with(".yaml") || name.ends_with(".yml"); }

/// True when setting `a` also sets `b`: they are equal or `b` lies below `a`.
bool covers(const std::string& a, const std::string& b) { return b == a || b.starts_with(a + "."); }

class Parser {
 public:
  Parser(const std::vector<std::string>& arguments, const AppInfo& info)
      : arguments_(arguments), info_(info) {}

  Arguments parse() {
    while (at_ < arguments_.size()) {
      const std::string& argument = arguments_[at_++];
      if (argument.starts_with("-") && argument.size() > 1) {
        option(argument);
      } else if (size_t equals = argument.find('='); equals != std::string::npos) {
        setting(argument, argument.substr(0, equals), argument.substr(equals + 1));
      } else {
        positional(argument);
      }
    }
    if (out_.verb.empty() && !info_.verbs.empty()) out_.verb = info_.verbs.front();
    return std::move(out_);
  }

 private:
  void option(const std::string& argument) {
    size_t equals = argument.find('=');
    std::string name = argument == "-h" ? "--help" : argument.substr(0, equals);
    OCCAM_CHECK(seen_.insert(name).second, ErrorKind::usage, "option {} is given twice; remove one", name);
    auto value = [&]() -> std::string {
      if (equals != std::string::npos) return argument.substr(equals + 1);
      OCCAM_CHECK(at_ < arguments_.size() && !arguments_[at_].starts_with("--"), ErrorKind::usage,
                  "option {} needs a value", name);
      return arguments_[at_++];
    };
    auto flag = [&](bool& target) {
      OCCAM_CHECK(equals == std::string::npos, ErrorKind::usage, "option {} takes no value", name);
      target = true;
    };
    if (name == "--device") {
      out_.device = value();
    } else if (name == "--resume" && info_.resumes) {
      out_.resume = value();
      OCCAM_CHECK(!out_.resume.empty(), ErrorKind::usage,
                  "option --resume needs 'auto' or the path of a checkpoint");
    } else if (name == "--print-config") {
      flag(out_.print_config);
    } else if (name == "--check") {
      flag(out_.check);
    } else if (name == "--json") {
      flag(out_.json);
    } else if (name == "--help") {
      out_.help = true;
      bool has_key =
          equals != std::string::npos || (at_ < arguments_.size() && !arguments_[at_].starts_with("-"));
      if (has_key) out_.help_key = value();
    } else {
      std::vector<std::string> known{"--device", "--print-config", "--check", "--json", "--help"};
      if (info_.resumes) known.emplace_back("--resume");
      fail(ErrorKind::usage, fmt::format("unknown option {}; {}", name, name_hint(name, known)));
    }
  }

  void setting(const std::string& argument, const std::string& key, const std::string& text) {
    bool bad = key.empty() || key.front() == '.' || key.back() == '.' || key.find("..") != std::string::npos;
    OCCAM_CHECK(!bad, ErrorKind::usage, "'{}' does not name a key; write key.sub=value", argument);
    for (const auto& [earlier, value] : out_.settings) {
      OCCAM_CHECK(earlier != key, ErrorKind::usage,
                  "'{}' is set twice on the command line ('{}' and '{}'); remove one", key, value.source,
                  argument);
      OCCAM_CHECK(
          !covers(earlier, key) && !covers(key, earlier), ErrorKind::usage,
          "'{0}' is set twice on the command line ('{1}' and '{2}'); remove one, or set the keys of '{0}' "
          "one by one (see --help {0})",
          earlier.size() < key.size() ? earlier : key, value.source, argument);
    }
    ConfigNode value = parse_yaml(text, argument);
    clear_place(value, argument);
    out_.settings.emplace_back(key, std::move(value));
  }

  /// A line and column inside one argument say less than the argument itself.
  static void clear_place(ConfigNode& node, const std::string& argument) {
    node.source = argument;
    node.line = node.key_line = 0;
    for (ConfigNode& item : node.items) clear_place(item, argument);
  }

  void positional(const std::string& argument) {
    bool is_verb = std::find(info_.verbs.begin(), info_.verbs.end(), argument) != info_.verbs.end();
    if (is_verb && out_.verb.empty()) {
      out_.verb = argument;
      return;
    }
    if (!info_.operand.empty() && !out_.verb.empty() && out_.operand.empty() && !is_yaml(argument)) {
      out_.operand = argument;
      return;
    }
    if (!is_yaml(argument) && !std::filesystem::is_regular_file(argument)) {
      std::string expected =
          info_.verbs.empty() ? "" : fmt::format("verb ({}), no ", name_hint(argument, info_.verbs));
      fail(ErrorKind::usage, fmt::format("'{}' is no {}config file (.yaml) and no key=value; see {} --help",
                                         argument, expected, info_.name));
    }
    OCCAM_CHECK(out_.config.empty(), ErrorKind::usage, "two config files, '{}' and '{}'; give one",
                out_.config, argument);
    out_.config = argument;
  }

  const std::vector<std::string>& arguments_;
  const AppInfo& info_;
  size_t at_ = 0;
  Arguments out_;
  std::set<std::string> seen_;
};

void collect_keys(const ConfigNode& node, const std::string& path, std::vector<std::string>& out) {
  for (const ConfigNode& item : node.is_map() ? node.items : node.element) {
    std::string key = item.key.empty() ? path : path.empty() ? item.key : path + "." + item.key;
    if (!item.key.empty()) out.push_back(key);
    collect_keys(item, key, out);
  }
}

/// The described node at `key`; through lists of structs too, by their default element ("replace.with").
const ConfigNode* find_described(const ConfigNode& node, std::string_view key) {
  size_t dot = key.find('.');
  const ConfigNode* child = node.find(key.substr(0, dot));
  if (!child && !node.element.empty()) return find_described(node.element[0], key);
  if (!child || dot == std::string_view::npos) return child;
  return find_described(*child, key.substr(dot + 1));
}

/// Lists without items show the keys of their elements.
ConfigNode with_elements(ConfigNode node) {
  if (node.items.empty() && !node.element.empty()) {
    node.help += "; each item:";
    node.kind = ConfigNode::Kind::list;
    node.items = node.element;
  }
  for (ConfigNode& item : node.items) item = with_elements(std::move(item));
  return node;
}

}  // namespace

Arguments parse_arguments(const std::vector<std::string>& arguments, const AppInfo& info) {
  return Parser(arguments, info).parse();
}

ConfigNode load_config(const Arguments& arguments) {
  ConfigNode root;
  root.source = "command line";
  if (!arguments.config.empty()) root = read_yaml(arguments.config);
  for (const auto& [key, value] : arguments.settings) set_config(root, key, value);
  return root;
}

std::string help_text(const AppInfo& info, const ConfigNode& described) {
  std::string text = fmt::format("{}: {}\n\nUsage: {}{} [CONFIG.yaml] [key.sub=value ...] [OPTIONS]\n",
                                 info.name, info.summary, info.name,
                                 info.verbs.empty()     ? std::string()
                                 : info.operand.empty() ? " [VERB]"
                                                        : " [VERB [" + info.operand + "]]");
  if (!info.verbs.empty()) {
    text += "Verbs:";
    for (const std::string& verb : info.verbs) text += " " + verb;
    text += fmt::format(" (default: {})\n", info.verbs.front());
  }
  text +=
      "\nOptions:\n"
      "  --device auto|cpu|cuda[:N]   where to compute (default auto: a GPU when there is one)\n";
  if (info.resumes)
    text += "  --resume auto|PATH           continue from the newest checkpoint in out.dir, or from PATH\n";
  text +=
      "  --print-config               print the settings this command line gives, and stop\n"
      "  --check                      read and check all input, and stop before the work\n"
      "  --json                       print summary.json on the standard output\n"
      "  --help [KEY]                 this text, or the help of one key\n"
      "\nExit codes: 0 done, 1 failed, 2 wrong usage, config or input, 3 a value that is not finite, 4 out "
      "of memory\n";
  if (!info.examples.empty()) text += "\nExamples:\n";
  for (const std::string& example : info.examples) text += "  " + example + "\n";
  return text + "\nSettings, with their defaults (values on the command line are YAML):\n" +
         dump_yaml(with_elements(described), true);
}

std::string help_text_of(const AppInfo& info, const ConfigNode& described, const std::string& key) {
  const ConfigNode* node = find_described(described, key);
  if (!node) {
    std::vector<std::string> keys;
    collect_keys(described, "", keys);
    std::string nearest = nearest_name(key, keys);
    fail(ErrorKind::usage, fmt::format("no key '{}'; {}", key,
                                       nearest.empty() ? "see " + info.name + " --help for all"
                                                       : "did you mean '" + nearest + "'?"));
  }
  ConfigNode shown = with_elements(*node);
  std::string text = fmt::format("{}: {} ({})\n", key, node->help, node->type);
  bool has_keys = node->is_map() || !node->element.empty();
  return text + (has_keys ? "\n" : "default: ") + dump_yaml(shown, has_keys);
}

}  // namespace occam
