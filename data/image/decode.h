#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "data/image/image.h"

namespace occam {

/// Which library reads JPEG. `automatic` is libjpeg-turbo where this build has it, else stb_image; PNG is
/// always stb_image. The two JPEG decoders differ by a few levels a pixel (chroma upsampling, inverse DCT).
enum class JpegDecoder : uint8_t { automatic, stb, libjpeg };
bool has_libjpeg();

struct DecodeOptions {
  JpegDecoder jpeg = JpegDecoder::automatic;
  /// Larger pictures are refused before anything is allocated. Default: Pillow's limit for a decompression
  /// bomb.
  int64_t max_pixels = 178'956'970;
};

/// What the header says.
struct ImageInfo {
  int64_t width = 0, height = 0;
  int64_t channels = 0;  // 1 or 3: what decode_image gives
  bool is_jpeg = false;  // else PNG
};

/// Reads the header of a JPEG or PNG file in memory; the type is told by the first bytes, never by the name.
/// `name` is what errors call the data. Throws Error{input}.
ImageInfo image_info(std::span<const uint8_t> bytes, const std::string& name);

/// Decodes JPEG or PNG to 1 channel (grey) or 3 (RGB), by these rules:
/// - alpha is dropped, palettes become RGB, 1/2/4-bit grey is scaled to 8 bits;
/// - 16-bit values keep their high byte (Pillow does so for colour, but saturates 16-bit grey);
/// - CMYK JPEG is taken as Adobe's inverted kind and becomes RGB by c * k / 255, as in Pillow;
/// - EXIF orientation, colour profiles and gamma are ignored, as in Image.open(path).convert("RGB");
/// - data that end early and PNG chunks with a wrong checksum are errors; other damage that libjpeg gets over
/// is
///   counted in `warnings` (stb_image does not report it).
/// Throws Error{input} naming `name` on anything else; 12-bit, lossless and (with stb_image) arithmetic JPEG
/// are refused. Memory stays in proportion to the bytes and the stated pixels, and a picture too large for
/// the bytes that claim to hold it is refused first.
Image decode_image(std::span<const uint8_t> bytes, const std::string& name, const DecodeOptions& options = {},
                   int64_t* warnings = nullptr);
/// The same for a file.
Image decode_image_file(const std::string& path, const DecodeOptions& options = {},
                        int64_t* warnings = nullptr);

}  // namespace occam
