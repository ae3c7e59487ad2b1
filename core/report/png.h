#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace occam {

/// PNG bytes of `pixels` [height, width, channels], 8 bit; channels 1 (grey) or 3 (RGB).
std::string encode_png(const std::vector<uint8_t>& pixels, int64_t height, int64_t width, int channels);

std::string encode_base64(const std::string& bytes);

}  // namespace occam
