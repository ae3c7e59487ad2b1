#include "data/image/image.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"

namespace occam {

Image::Image(int64_t width, int64_t height, int64_t channels)
    : width_(width), height_(height), channels_(channels) {
  OCCAM_CHECK(width >= 1 && height >= 1 && width <= kMaxSide && height <= kMaxSide, ErrorKind::input,
              "image of {} x {} pixels: each side must be between 1 and {}", width, height, kMaxSide);
  OCCAM_CHECK(channels == 1 || channels == 3, ErrorKind::input,
              "image with {} channels: an image has 1 or 3 channels", channels);
  pixels_.resize(size_t(width * height * channels));
}

Image crop(const Image& image, const Rect& part) {
  Image out(part.width, part.height, image.channels());
  int64_t c = image.channels();
  int64_t x0 = std::max<int64_t>(part.x, 0), x1 = std::min(part.x + part.width, image.width());
  int64_t y0 = std::max<int64_t>(part.y, 0), y1 = std::min(part.y + part.height, image.height());
  if (x0 >= x1) return out;
  for (int64_t y = y0; y < y1; ++y)
    std::memcpy(out.row(y - part.y) + (x0 - part.x) * c, image.row(y) + x0 * c, size_t((x1 - x0) * c));
  return out;
}

void flip_horizontal(Image& image) {
  int64_t w = image.width(), c = image.channels();
  for (int64_t y = 0; y < image.height(); ++y) {
    uint8_t* row = image.row(y);
    for (int64_t left = 0, right = w - 1; left < right; ++left, --right)
      for (int64_t k = 0; k < c; ++k) std::swap(row[left * c + k], row[right * c + k]);
  }
}

Image with_channels(Image image, int64_t channels) {
  if (image.channels() == channels) return image;
  Image out(image.width(), image.height(), channels);
  const uint8_t* in = image.data();
  uint8_t* to = out.data();
  int64_t pixels = image.width() * image.height();
  if (channels == 3) {
    for (int64_t i = 0; i < pixels; ++i) to[3 * i] = to[3 * i + 1] = to[3 * i + 2] = in[i];
  } else {
    for (int64_t i = 0; i < pixels; ++i) {
      uint32_t sum = 19595u * in[3 * i] + 38470u * in[3 * i + 1] + 7471u * in[3 * i + 2] + 32768u;
      to[i] = uint8_t(sum >> 16);
    }
  }
  return out;
}

}  // namespace occam
