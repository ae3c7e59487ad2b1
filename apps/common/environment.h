#pragma once
#include <string>
#include <vector>

#include "core/device.h"
#include "core/io/json.h"

namespace occam {

/// env.json: version, commit, time, command line, machine, device, threads, compiler and library versions.
Json describe_environment(const std::string& app, const std::vector<std::string>& command_line,
                          Device device);

}  // namespace occam
