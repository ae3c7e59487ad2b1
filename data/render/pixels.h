#pragma once
// One pixel of a batch, written once for the CPU loop and the kernel. Plain types.
//
// Both must agree with Transform::apply and mix_images to the last bit, so multiplications are not contracted
// with additions here, and levels are normalised by a table that the host made.
#include <cmath>
#include <cstdint>

#include "core/half.h"
#include "core/philox.h"

#ifdef __CUDA_ARCH__
#define OCCAM_UNROLL _Pragma("unroll")
#define OCCAM_NO_UNROLL _Pragma("unroll 1")
#else
#define OCCAM_UNROLL
#define OCCAM_NO_UNROLL
#endif

namespace occam::kernels {

/// One image of a batch: where its pixels are and what was drawn for it.
struct ImagePlan {
  int64_t index;  // in the data set, and so in the store
  int64_t fresh;  // its row among the batch's own pixels; -1: it is in the store
  int64_t label;
  uint64_t noise_at;                                    // Draw::noise_at; even
  int32_t x, y, width, height;                          // what is cut out; zeros outside the source
  int32_t erase_x, erase_y, erase_width, erase_height;  // of the result
  int32_t flip, rows_first;                             // 0 or 1
};

/// A batch. Sources are u8 [height, width, channels]; with taps == 0 every cut is size x size.
struct RenderArgs {
  const ImagePlan* images;
  int64_t count;
  const uint8_t *store, *fresh;  // rows of `row_bytes`
  int64_t row_bytes;
  int32_t source_width, source_height, source_channels;
  int32_t size, channels;  // of the result; channels is 3 where source_channels is
  const float* levels;     // [channels, 256]
  // FilterWeights from every length to `size`: [length - 1, size] and [length - 1, size, taps].
  const int32_t *tap_first, *tap_count, *tap_value;
  int32_t taps;
  uint64_t noise_key;
  // MixPlan: shares of an image and its partner, and for cutmix a box where the partner alone counts.
  int32_t mix, cutmix, top, bottom, left, right;
  float keep, give;
  int64_t classes;
  int64_t* labels;  // [count]
  float* targets;   // [count, classes] or null
};

inline constexpr int kFilterBits = 22;  // of FilterWeights

/// Two standard normal numbers by Box and Muller.
OCCAM_HD inline void normal_pair(uint32_t a, uint32_t b, float& first, float& second) {
  float u = uniform_from_bits(a) + 0x1p-25f;  // in (0, 1)
  float radius = sqrtf(-2 * logf(u));
  float angle = 6.28318530717958647692f * uniform_from_bits(b);
  first = radius * cosf(angle);
  second = radius * sinf(angle);
}

/// Key of an erased row of a channel: the row's turn in the image's stream.
OCCAM_HD inline uint64_t erased_key(const RenderArgs& a, const ImagePlan& p, int32_t c, int32_t y) {
  uint64_t at = p.noise_at + 2 * (uint64_t(c) * uint64_t(p.erase_height) + uint64_t(y - p.erase_y));
  Philox4 words = philox4x32(a.noise_key, at >> 2, uint64_t(p.index));
  return (at & 2) ? uint64_t(words.v[2]) << 32 | words.v[3] : uint64_t(words.v[0]) << 32 | words.v[1];
}

OCCAM_HD inline int32_t filtered_byte(int32_t sum) {
  sum >>= kFilterBits;
  return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

/// Pixel (x, y) of the cut resampled to size x size: resize() in both directions, with 8 bits between them.
template <int C>
OCCAM_HD inline void resample_pixel(const RenderArgs& a, const ImagePlan& p, const uint8_t* source, int32_t x,
                                    int32_t y, int32_t (&level)[C]) {
  constexpr int32_t kHalf = 1 << (kFilterBits - 1);
  int64_t column = int64_t(p.width - 1) * a.size + x, row = int64_t(p.height - 1) * a.size + y;
  // The inner direction is the one that is resampled first.
  int64_t inner = p.rows_first ? row : column, outer = p.rows_first ? column : row;
  const int32_t *inner_value = a.tap_value + inner * a.taps, *outer_value = a.tap_value + outer * a.taps;
  int32_t inner_count = a.tap_count[inner], outer_count = a.tap_count[outer];
  int64_t across = a.source_channels, down = across * a.source_width;
  int64_t inner_step = p.rows_first ? down : across, outer_step = p.rows_first ? across : down;
  int32_t next_channel = a.source_channels == 3;
  source += (p.y + a.tap_first[row]) * down + (p.x + a.tap_first[column]) * across;
  for (int c = 0; c < C; ++c) level[c] = kHalf;
  for (int32_t j = 0; j < outer_count; ++j) {
    int32_t part[C];
    for (int c = 0; c < C; ++c) part[c] = kHalf;
    const uint8_t* from = source + j * outer_step;
    for (int32_t k = 0; k < inner_count; ++k, from += inner_step) {
      int32_t weight = inner_value[k];
      OCCAM_UNROLL
      for (int c = 0; c < C; ++c) part[c] += from[c * next_channel] * weight;
    }
    for (int c = 0; c < C; ++c) level[c] += filtered_byte(part[c]) * outer_value[j];
  }
  for (int c = 0; c < C; ++c) level[c] = filtered_byte(level[c]);
}

/// Pixels x ... x + V - 1 of row y, normalised, before erasing and mixing.
template <bool kResample, int C, int V>
OCCAM_HD inline void read_run(const RenderArgs& a, const float* levels, const ImagePlan& p, int32_t x,
                              int32_t y, float (&values)[C][V]) {
  const uint8_t* source = p.fresh >= 0 ? a.fresh + p.fresh * a.row_bytes : a.store + p.index * a.row_bytes;
  int32_t sy = p.y + y;
  bool inside = sy >= 0 && sy < a.size;
  // Without resampling the source is size x size, and the limit of sizes keeps that below 2^31 bytes.
  if (!kResample && inside) source += sy * a.size * a.source_channels;
  OCCAM_UNROLL
  for (int k = 0; k < V; ++k) {
    int32_t from = p.flip ? a.size - 1 - x - k : x + k, sx = p.x + from;
    int32_t level[C] = {};
    if constexpr (kResample) {
      resample_pixel(a, p, source, from, y, level);
    } else if (inside && sx >= 0 && sx < a.size) {
      OCCAM_UNROLL
      for (int c = 0; c < C; ++c)
        level[c] = source[sx * a.source_channels + (a.source_channels == 3 ? c : 0)];
    }
    OCCAM_UNROLL
    for (int c = 0; c < C; ++c) values[c][k] = levels[c * 256 + level[c]];
  }
}

/// Noise where the run is erased. A block of random bits gives 4 values, and a run meets at most two blocks.
template <int C, int V>
OCCAM_HD inline void erase_run(const RenderArgs& a, const ImagePlan& p, int32_t x, int32_t y,
                               float (&values)[C][V]) {
  constexpr int kBlocks = V == 1 ? 1 : 2;
  static_assert(V <= 4);
  if (y < p.erase_y || y >= p.erase_y + p.erase_height) return;
  if (x + V <= p.erase_x || x >= p.erase_x + p.erase_width) return;
  const int32_t first = x - p.erase_x, shift = first & 3, width = p.erase_width;
  // One copy of the code serves all of it; the values stay in registers.
  OCCAM_NO_UNROLL
  for (int turn = 0; turn < C * kBlocks; ++turn) {
    const int channel = turn / kBlocks, start = shift - 4 * (turn % kBlocks);
    Philox4 bits = philox4x32(erased_key(a, p, channel, y), uint32_t(first - start), 0);
    float noise[4];
    normal_pair(bits.v[0], bits.v[1], noise[0], noise[1]);
    normal_pair(bits.v[2], bits.v[3], noise[2], noise[3]);
    OCCAM_UNROLL
    for (int k = 0; k < V; ++k) {
      const int32_t lane = start + k, column = first + k;
      if (lane < 0 || lane > 3 || column < 0 || column >= width) continue;
      const float value =
          (lane & 2) ? ((lane & 1) ? noise[3] : noise[2]) : ((lane & 1) ? noise[1] : noise[0]);
      OCCAM_UNROLL
      for (int c = 0; c < C; ++c)
        if (c == channel) values[c][k] = value;
    }
  }
}

/// u keep + v give, with two roundings of the products.
OCCAM_HD inline float blend(float u, float keep, float v, float give) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(__fmul_rn(u, keep), __fmul_rn(v, give));
#else
  return u * keep + v * give;
#endif
}

template <class T, int V>
struct alignas(sizeof(T) * V) Run {
  T v[V];
};

/// Pixels x ... x + V - 1 of row y of image i and of its partner count - 1 - i, to [count, C, size, size].
template <int C, int V, bool kResample, class T>
OCCAM_HD inline void render_run(const RenderArgs& a, const float* levels, int64_t i, int32_t x, int32_t y,
                                T* out) {
  int64_t j = a.count - 1 - i, plane = int64_t(a.size) * a.size;
  const ImagePlan &p = a.images[i], &q = a.images[j];
  float u[C][V], v[C][V];
  read_run<kResample>(a, levels, p, x, y, u);
  erase_run(a, p, x, y, u);
  read_run<kResample>(a, levels, q, x, y, v);
  erase_run(a, q, x, y, v);
  OCCAM_UNROLL
  for (int c = 0; c < C; ++c) {
    Run<T, V> first, second;
    OCCAM_UNROLL
    for (int k = 0; k < V; ++k) {
      float mine = u[c][k], other = v[c][k];
      bool inside = y >= a.top && y < a.bottom && x + k >= a.left && x + k < a.right;
      if (i != j && a.mix && (!a.cutmix || inside)) {
        mine = a.cutmix ? v[c][k] : blend(u[c][k], a.keep, v[c][k], a.give);
        other = a.cutmix ? u[c][k] : blend(v[c][k], a.keep, u[c][k], a.give);
      }
      first.v[k] = T(mine);
      second.v[k] = T(other);
    }
    int64_t at = c * plane + int64_t(y) * a.size + x;
    *reinterpret_cast<Run<T, V>*>(out + i * C * plane + at) = first;
    if (i != j) *reinterpret_cast<Run<T, V>*>(out + j * C * plane + at) = second;
  }
}

/// Share of class k in the target of an image with this label.
OCCAM_HD inline float target_value(const RenderArgs& a, int64_t k, int64_t label, int64_t partner) {
  return (k == label ? a.keep : 0.0f) + (k == partner ? a.give : 0.0f);
}

}  // namespace occam::kernels
