#pragma once
// The command line every app shares:
//   APP [VERB [NAME]] [CONFIG.yaml] [key.sub=value ...] [--device auto|cpu|cuda[:N]] [--resume auto|PATH]
//   [--print-config]
//       [--check] [--json] [--help [key]]
#include <string>
#include <utility>
#include <vector>

#include "core/config_node.h"

namespace occam {

struct AppInfo {
  std::string name;     // "train"
  std::string summary;  // one or two sentences
  std::vector<std::string> examples;
  std::vector<std::string> verbs{};  // empty when the app does one thing; the first is the default
  bool resumes = false;              // takes --resume
  bool run_folder = true;            // false: only when out.dir is set
  std::string operand{};             // "NAME" when a word may follow the verb
};

struct Arguments {
  std::string verb, operand, config;
  std::vector<std::pair<std::string, ConfigNode>> settings;  // key.sub=value, in order
  std::string device = "auto";
  std::string resume;  // empty, "auto" or the path of a checkpoint
  bool print_config = false, check = false, json = false, help = false;
  std::string help_key;
};

/// Throws Error{usage} for an unknown or repeated option (with the nearest known one), a missing value, a
/// second config file and a key set twice (`a=... a.b=...` included).
Arguments parse_arguments(const std::vector<std::string>& arguments, const AppInfo& info);

/// The config file, if any, with the settings of the command line put over it; a setting replaces all that
/// the file says under its key.
ConfigNode load_config(const Arguments& arguments);

/// For --help: usage, options, examples and every key with its default. `described` is describe_config's
/// result.
std::string help_text(const AppInfo& info, const ConfigNode& described);
/// For --help KEY: the key and all below it. Throws Error{usage} with the nearest known key.
std::string help_text_of(const AppInfo& info, const ConfigNode& described, const std::string& key);

}  // namespace occam
