#pragma once
#include <cstdint>
#include <vector>

namespace occam {

/// 8-bit pixels, rows top to bottom, channels interleaved: value (y, x, c) is at (y * width + x) * channels +
/// c.
class Image {
 public:
  /// Largest width or height; products of two sides and three channels stay far inside int64.
  static constexpr int64_t kMaxSide = 1 << 24;

  Image() = default;
  /// Zero-filled. Throws Error{input} unless 1 <= width, height <= kMaxSide and channels is 1 or 3.
  Image(int64_t width, int64_t height, int64_t channels);

  int64_t width() const { return width_; }
  int64_t height() const { return height_; }
  int64_t channels() const { return channels_; }
  bool empty() const { return pixels_.empty(); }
  /// Bytes in total.
  int64_t size() const { return int64_t(pixels_.size()); }
  uint8_t* data() { return pixels_.data(); }
  const uint8_t* data() const { return pixels_.data(); }
  uint8_t* row(int64_t y) { return pixels_.data() + y * width_ * channels_; }
  const uint8_t* row(int64_t y) const { return pixels_.data() + y * width_ * channels_; }
  bool operator==(const Image&) const = default;

 private:
  int64_t width_ = 0, height_ = 0, channels_ = 0;
  std::vector<uint8_t> pixels_;
};

/// A part of an image. It may reach outside; crop() fills what lies there with zeros.
struct Rect {
  int64_t x = 0, y = 0, width = 0, height = 0;
  bool operator==(const Rect&) const = default;
};

/// Copies `part`; pixels outside the image are 0.
Image crop(const Image& image, const Rect& part);
/// Mirrors left and right in place.
void flip_horizontal(Image& image);
/// `image` with 1 or 3 channels. One to three replicates; three to one is the ITU-R 601 luma in 16-bit fixed
/// point, (19595 R + 38470 G + 7471 B + 32768) >> 16, the rule of Pillow's convert("L").
Image with_channels(Image image, int64_t channels);

}  // namespace occam
