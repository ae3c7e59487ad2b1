#pragma once
// YAML into settings and back. yaml-cpp stays in yaml.cpp.
#include <filesystem>
#include <string>
#include <string_view>

#include "core/config_node.h"

namespace occam {

/// Throws Error{usage} "SOURCE:LINE:COLUMN: ..." for bad syntax, a duplicate key, a key that is no text, more
/// than one document, and for more than 64 levels or 20,000 values once aliases are expanded.
ConfigNode parse_yaml(std::string_view text, const std::string& source);
/// The same for a file of at most 4 MiB. Throws Error{usage} when it cannot be read.
ConfigNode read_yaml(const std::filesystem::path& path);

/// A list of plain values stays on one line; doubles keep every digit. `with_help` puts help and type behind
/// each key.
std::string dump_yaml(const ConfigNode& node, bool with_help = false);

}  // namespace occam
