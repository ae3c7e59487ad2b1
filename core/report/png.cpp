#include "core/report/png.h"

#include "core/check.h"

#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb_image_write.h>
#pragma GCC diagnostic pop

namespace occam {

std::string encode_png(const std::vector<uint8_t>& pixels, int64_t height, int64_t width, int channels) {
  OCCAM_ASSERT((channels == 1 || channels == 3) && height > 0 && width > 0 && height <= 1 << 14 &&
               width <= 1 << 14 && int64_t(pixels.size()) == height * width * channels);
  std::string out;
  auto append = [](void* context, void* data, int size) {
    static_cast<std::string*>(context)->append(static_cast<const char*>(data), size_t(size));
  };
  int written = stbi_write_png_to_func(append, &out, int(width), int(height), channels, pixels.data(),
                                       int(width) * channels);
  OCCAM_ASSERT(written != 0);
  return out;
}

std::string encode_base64(const std::string& bytes) {
  static constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) group = group << 8 | (k < count ? uint8_t(bytes[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k) out += k <= count ? kAlphabet[group >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

}  // namespace occam
