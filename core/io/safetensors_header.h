#pragma once
// The JSON header of a safetensors file, parsed but not yet checked against the data. Private to core/io.
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace occam {

struct SafetensorsHeader {
  struct Entry {
    std::string name, dtype;
    std::vector<uint64_t> shape, offsets;
    bool has_dtype = false, has_shape = false, has_offsets = false;
  };
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
};

/// Streams over the text, so memory and time stay linear in it whatever it holds. Throws Error{input} that
/// starts with `file`.
SafetensorsHeader parse_safetensors_header(std::string_view text, const std::string& file);

}  // namespace occam
