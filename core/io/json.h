#pragma once
// JSON by nlohmann-json. A source that touches values includes <nlohmann/json.hpp> itself: it is too heavy
// for a header.
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace occam {

/// Keeps the order in which keys were written.
using Json = nlohmann::ordered_json;

/// Throws Error{input} "NAME:LINE:COLUMN: ..." for bad syntax, a duplicate key or nesting deeper than 100.
Json parse_json(std::string_view text, const std::string& name);
/// The same for a file of at most 256 MiB.
Json read_json(const std::filesystem::path& path);

/// Doubles are written with as many digits as it takes to read the same double back; a NaN or infinity
/// becomes null. Indented by two; an array of plain values stays on one line.
std::string dump_json(const Json& value);
/// On one line, without a line end.
std::string dump_json_line(const Json& value);
/// Atomically.
void write_json(const std::filesystem::path& path, const Json& value);

}  // namespace occam
