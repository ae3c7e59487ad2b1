#pragma once
// Private to data/image: one function a decoding library, behind decode_image.
#include <cstdint>
#include <span>
#include <string>

#include "data/image/image.h"

namespace occam::codec {

/// Decodes a scanned JPEG or PNG with stb_image into `channels` (1 or 3), allocating at most `memory` bytes.
Image decode_stb(std::span<const uint8_t> bytes, const std::string& name, int channels, int64_t memory);

#if OCCAM_LIBJPEG
/// Decodes a JPEG with libjpeg-turbo; `warnings` gets how often the decoder had to guess.
Image decode_libjpeg(std::span<const uint8_t> bytes, const std::string& name, int64_t memory,
                     int64_t& warnings);
#endif

}  // namespace occam::codec
