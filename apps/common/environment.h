#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "core/device.h"
#include "core/io/json.h"

namespace occam {

/// env.json: version, commit, time, command line, machine, device, threads, compiler and library versions.
Json describe_environment(const std::string& app, const std::vector<std::string>& command_line,
                          Device device);

/// OpenBLAS takes kernels without AVX on a CPU that is younger than itself: products are then five times
/// slower. The kernels (a value of OPENBLAS_CORETYPE) that this CPU could run in the place of `chosen`, empty
/// when those are right.
std::string better_blas_kernels(std::string_view chosen);
/// What OpenBLAS chose.
std::string blas_kernels();

}  // namespace occam
