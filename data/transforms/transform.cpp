#include "data/transforms/transform.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "data/render/pixels.h"

namespace occam {

namespace {

int64_t centre_offset(int64_t length, int64_t side) {
  if (length < side) return -((side - length) / 2);
  return int64_t(std::nearbyint(double(length - side) / 2));  // ties to even, as Python's round
}

/// A rectangle of 2 % to 1/3 of the area; empty when ten attempts do not fit.
Rect draw_erase(int64_t side, Rng& rng) {
  auto area = double(side * side);
  for (int attempt = 0; attempt < 10; ++attempt) {
    double target = rng.uniform(0.02, 1.0 / 3) * area;
    double aspect = std::exp(rng.uniform(std::log(0.3), -std::log(0.3)));
    auto h = int64_t(std::nearbyint(std::sqrt(target * aspect)));
    auto w = int64_t(std::nearbyint(std::sqrt(target / aspect)));
    if (h >= side || w >= side) continue;
    int64_t top = rng.below(side - h + 1), left = rng.below(side - w + 1);
    return {left, top, w, h};
  }
  return {};
}

/// Standard normal numbers, four from each block of random bits.
void fill_normal(float* out, int64_t count, uint64_t key) {
  for (int64_t i = 0; i < count; i += 4) {
    Philox4 bits = philox4x32(key, uint64_t(i), 0);
    float block[4];
    kernels::normal_pair(bits.v[0], bits.v[1], block[0], block[1]);
    kernels::normal_pair(bits.v[2], bits.v[3], block[2], block[3]);
    std::copy_n(block, std::min<int64_t>(count - i, 4), out + i);
  }
}

}  // namespace

Rect resized_size(int64_t width, int64_t height, int64_t short_side) {
  int64_t shorter = std::min(width, height), longer = std::max(width, height);
  auto long_side = int64_t(double(short_side * longer) / double(shorter));
  return width <= height ? Rect{0, 0, short_side, long_side} : Rect{0, 0, long_side, short_side};
}

Rect centre_rect(int64_t width, int64_t height, int64_t side) {
  return {centre_offset(width, side), centre_offset(height, side), side, side};
}

Rect random_resized_rect(int64_t width, int64_t height, double scale_min, double scale_max, Rng& rng) {
  constexpr double kRatioMin = 3.0 / 4, kRatioMax = 4.0 / 3;
  auto area = double(width * height);
  for (int attempt = 0; attempt < 10; ++attempt) {
    double target = area * rng.uniform(scale_min, scale_max);
    double aspect = std::exp(rng.uniform(std::log(kRatioMin), std::log(kRatioMax)));
    auto w = int64_t(std::nearbyint(std::sqrt(target * aspect)));
    auto h = int64_t(std::nearbyint(std::sqrt(target / aspect)));
    if (w < 1 || w > width || h < 1 || h > height) continue;
    int64_t y = rng.below(height - h + 1);
    return {rng.below(width - w + 1), y, w, h};
  }
  // The largest central part of an allowed shape.
  double ratio = double(width) / double(height);
  int64_t w = width, h = height;
  if (ratio < kRatioMin) h = std::max<int64_t>(int64_t(std::nearbyint(double(w) / kRatioMin)), 1);
  if (ratio > kRatioMax) w = std::max<int64_t>(int64_t(std::nearbyint(double(h) * kRatioMax)), 1);
  return {(width - w) / 2, (height - h) / 2, w, h};
}

Transform::Transform(TransformOptions options) : options_(std::move(options)) {
  const TransformOptions& o = options_;
  OCCAM_CHECK(o.size >= 1 && o.size <= 16384, ErrorKind::usage, "data.image_size={}: expected 1 to 16384",
              o.size);
  OCCAM_CHECK(o.channels == 1 || o.channels == 3, ErrorKind::usage, "data.channels={}: expected 1 or 3",
              o.channels);
  OCCAM_CHECK(o.crop_pct > 0 && o.crop_pct <= 1, ErrorKind::usage,
              "data.crop_pct={}: expected above 0, at most 1", o.crop_pct);
  OCCAM_CHECK(int64_t(o.mean.size()) == o.channels && int64_t(o.std.size()) == o.channels, ErrorKind::usage,
              "data.mean has {} and data.std {} values for {} channels", o.mean.size(), o.std.size(),
              o.channels);
  OCCAM_CHECK(
      o.augment.scale_min > 0 && o.augment.scale_min <= o.augment.scale_max && o.augment.scale_max <= 1,
      ErrorKind::usage, "random crop of {} to {} of the area: expected 0 < min <= max <= 1",
      o.augment.scale_min, o.augment.scale_max);
  normalised_.resize(size_t(o.channels));
  for (size_t c = 0; c < normalised_.size(); ++c) {
    OCCAM_CHECK(o.std[c] > 0, ErrorKind::usage, "data.std of channel {} is {}: expected above 0", c,
                o.std[c]);
    for (int v = 0; v < 256; ++v) normalised_[c][size_t(v)] = (float(v) / 255.0f - o.mean[c]) / o.std[c];
  }
}

Image Transform::evaluation_pixels(const Image& image) const {
  int64_t w = image.width(), h = image.height(), side = options_.size;
  if (!options_.filter) return crop(image, centre_rect(w, h, side));
  auto short_side = int64_t(std::floor(double(side) / options_.crop_pct));
  Rect full = resized_size(w, h, short_side);
  return resize(image, full.width, full.height, *options_.filter, centre_rect(full.width, full.height, side));
}

Image Transform::base(const Image& image) const {
  // Luma first: filtering rounds, so the order matters. Copies of one channel are made last: that is the
  // same.
  bool to_grey = options_.channels == 1 && image.channels() == 3;
  if (options_.augment.crop == CropMode::resized) return to_grey ? with_channels(image, 1) : image;
  return evaluation_pixels(to_grey ? with_channels(image, 1) : image);
}

Draw Transform::draw(int64_t width, int64_t height, Rng& rng) const {
  const Augment& a = options_.augment;
  int64_t side = options_.size;
  Draw d{{0, 0, side, side}};
  if (a.crop == CropMode::pad) {
    d.part.x = rng.below(2 * a.padding + 1) - a.padding;
    d.part.y = rng.below(2 * a.padding + 1) - a.padding;
  }
  if (a.crop == CropMode::resized) d.part = random_resized_rect(width, height, a.scale_min, a.scale_max, rng);
  d.flip = a.flip > 0 && rng.bernoulli(a.flip);
  if (a.erase > 0 && rng.bernoulli(a.erase)) d.erase = draw_erase(side, rng);
  d.noise_at = rng.position();
  return d;
}

Image Transform::cut(Image base, const Draw& draw) const {
  if (draw.part != Rect{0, 0, base.width(), base.height()}) base = crop(base, draw.part);
  if (options_.augment.crop != CropMode::resized) return base;
  return resize(base, options_.size, options_.size, options_.filter.value_or(Filter::bicubic));
}

Image Transform::drawn_pixels(Image base, const Draw& draw) const {
  Image out = cut(std::move(base), draw);
  if (draw.flip) flip_horizontal(out);
  return with_channels(std::move(out), options_.channels);
}

Image Transform::pixels(const Image& image, Rng& rng) const {
  Image from = base(image);
  Draw d = draw(from.width(), from.height(), rng);
  return drawn_pixels(std::move(from), d);
}

void Transform::apply(const Image& image, Rng& rng, float* out) const {
  Image from = base(image);
  Draw d = draw(from.width(), from.height(), rng);
  Image small = drawn_pixels(std::move(from), d);
  int64_t side = options_.size, plane = side * side, channels = options_.channels;
  for (int64_t c = 0; c < channels; ++c) {
    const float* table = normalised_[size_t(c)].data();
    const uint8_t* level = small.data() + c;
    float* to = out + c * plane;
    for (int64_t i = 0; i < plane; ++i) to[i] = table[level[i * channels]];
  }
  const Rect& e = d.erase;
  for (int64_t c = 0; c < channels && e.width > 0; ++c)
    for (int64_t y = e.y; y < e.y + e.height; ++y)
      fill_normal(out + (c * side + y) * side + e.x, e.width, rng.next_u64());
}

}  // namespace occam
