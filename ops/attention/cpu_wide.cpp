#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/tensor.h"
#include "core/vmath.h"
#include "ops/attention/cpu.h"
#include "ops/wide_product.h"

namespace occam {

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// Keys with those that fill the last vector, whose scores are made and not used.
int64_t padded(int64_t t) { return wide_padded(t); }

/// Queries of a tile: in forward so many that their scores stay in the L1 cache, in backward 112, for long
/// sums over them.
int64_t tile_rows(int64_t t, int64_t most) {
  const int64_t tiles = (t + most - 1) / most;
  return (t + tiles - 1) / tiles;
}

/// e^x of x <= 0 or little more, 0 below -86.
inline float exp_of_negative(float x) {
  const float y = vexp_near(x);
  return x < -86.0f ? 0.0f : y;
}

typedef float V __attribute__((vector_size(64), aligned(4), may_alias));

/// All 16 lanes in one.
template <class Combine>
OCCAM_WIDE [[gnu::always_inline]] inline float reduce(const V& lanes, const Combine& combine) {
  V v = lanes;
  combine(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  combine(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  combine(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  combine(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return v[0];
}

/// s <- exp(s - max) over the keys attended to, 0 elsewhere. Returns the sum; `log_sum` is +infinity for a
/// row without keys.
OCCAM_WIDE float softmax_numerators(float* s, const uint8_t* mask, int64_t t, float& log_sum) {
  const int64_t n = padded(t);
  if (mask != nullptr)
    for (int64_t j = 0; j < t; ++j) s[j] = mask[j] ? s[j] : -kInf;
  for (int64_t j = t; j < n; ++j) s[j] = -kInf;
  const V* row = reinterpret_cast<const V*>(s);
  V most = row[0];
  for (int64_t j = 1; j < n / 16; ++j) most = row[j] > most ? row[j] : most;
  const float largest = reduce(most, [](V& x, const V& y) { x = x > y ? x : y; });
  const float shift = largest == -kInf ? 0.0f : largest;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) s[j] = exp_of_negative(s[j] - shift);
  V sums = row[0];
  for (int64_t j = 1; j < n / 16; ++j) sums += row[j];
  const float sum = reduce(sums, [](V& x, const V& y) { x += y; });
  log_sum = sum == 0 ? kInf : shift + std::log(sum);
  return sum;
}

OCCAM_WIDE void scale_row(float* row, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] *= factor;
}

OCCAM_WIDE float dot_row(const float* a, const float* b, int64_t n) {
  V sums = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    sums += *reinterpret_cast<const V*>(a + i) * *reinterpret_cast<const V*>(b + i);
  float sum = reduce(sums, [](V& x, const V& y) { x += y; });
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// p = exp(s - lse) where attended to, else 0; ds = p (dp - delta), into dp.
OCCAM_WIDE void probabilities_and_gradient(float* s, float* dp, const uint8_t* mask, float lse, float delta,
                                           int64_t t) {
  const int64_t n = padded(t);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) s[j] = exp_of_negative(s[j] - lse);
  if (mask != nullptr)
    for (int64_t j = 0; j < t; ++j) s[j] = mask[j] ? s[j] : 0.0f;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) dp[j] = s[j] * (dp[j] - delta);
}

Tensor scratch_of_threads(int64_t count) {
  return empty({int64_t(omp_get_max_threads()), count}, {DType::f32, kCPU});
}

void pack(bool trans, const float* b, int64_t ldb, int64_t k, int64_t n, float* to) {
  wide_pack(trans, b, ldb, k, n, 0, (n + kWideColumns - 1) / kWideColumns, to);
}

}  // namespace

void attention_forward_wide(const AttentionCpu<float>& a) {
  const int64_t rows = tile_rows(a.t, std::max<int64_t>(27, 5632 / padded(a.t))),
                tiles = (a.t + rows - 1) / rows, items = a.b * a.h * tiles;
  const int64_t stride = 3 * a.h * a.d, out_stride = a.h * a.d, n = padded(a.t);
  const int64_t keys_size = wide_packed(a.d, a.t), values_size = wide_packed(a.t, a.d);
  Tensor scratch = scratch_of_threads(keys_size + values_size + rows * (n + 1));
#pragma omp parallel
  {
    float* keys = scratch.data<float>() + omp_get_thread_num() * scratch.size(1);
    float *values = keys + keys_size, *s = values + values_size, *sums = s + rows * n;
    int64_t packed = -1;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      const int64_t head = item / tiles, b = head / a.h, h = head % a.h, first = item % tiles * rows;
      const int64_t count = std::min(rows, a.t - first);
      const float* q = a.qkv + b * a.t * stride + h * a.d;
      if (head != packed) {
        pack(true, q + out_stride, stride, a.d, a.t, keys);
        pack(false, q + 2 * out_stride, stride, a.t, a.d, values);
        packed = head;
      }
      const uint8_t* mask = a.key_mask ? a.key_mask + b * a.t : nullptr;
      float* y = a.y + (b * a.t + first) * out_stride + h * a.d;
      wide_product({.m = count,
                    .n = n,
                    .k = a.d,
                    .a = q + first * stride,
                    .lda = stride,
                    .b = keys,
                    .d = s,
                    .ldd = n,
                    .alpha = float(a.scale)});
      for (int64_t i = 0; i < count; ++i)
        sums[i] = softmax_numerators(s + i * n, mask, a.t, a.lse[head * a.t + first + i]);
      wide_product(
          {.m = count, .n = a.d, .k = a.t, .a = s, .lda = n, .b = values, .d = y, .ldd = out_stride});
      for (int64_t i = 0; i < count; ++i)
        scale_row(y + i * out_stride, sums[i] == 0 ? 0.0f : 1 / sums[i], a.d);
    }
  }
}

void attention_backward_wide(const AttentionCpu<float>& a) {
  const int64_t rows = tile_rows(a.t, 112), stride = 3 * a.h * a.d, out_stride = a.h * a.d, n = padded(a.t);
  const int64_t keys_size = wide_packed(a.d, a.t), rows_size = wide_packed(a.t, a.d),
                tile_size = wide_packed(rows, a.d);
  Tensor scratch = scratch_of_threads(2 * keys_size + rows_size + tile_size + 2 * rows * n);
  const float scale = float(a.scale);
  // A head to a thread: the tiles of a head add to the same gradients of k and v, in order.
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < a.b * a.h; ++item) {
    const int64_t b = item / a.h, h = item % a.h;
    const float* q = a.qkv + b * a.t * stride + h * a.d;
    const float *k = q + out_stride, *v = k + out_stride;
    float* gq = a.gqkv + b * a.t * stride + h * a.d;
    float *gk = gq + out_stride, *gv = gk + out_stride;
    const uint8_t* mask = a.key_mask ? a.key_mask + b * a.t : nullptr;
    float* keys = scratch.data<float>() + omp_get_thread_num() * scratch.size(1);
    float *values = keys + keys_size, *key_rows = values + keys_size, *tile = key_rows + rows_size;
    float *p = tile + tile_size, *ds = p + rows * n;
    pack(true, k, stride, a.d, a.t, keys);
    pack(true, v, stride, a.d, a.t, values);
    pack(false, k, stride, a.t, a.d, key_rows);
    for (int64_t first = 0; first < a.t; first += rows) {
      const int64_t count = std::min(rows, a.t - first), at = (b * a.t + first) * out_stride + h * a.d;
      const float *y = a.y + at, *gy = a.gy + at, *q_tile = q + first * stride;
      WideProduct scores{.m = count, .n = n, .k = a.d};
      scores.a = q_tile, scores.lda = stride, scores.b = keys, scores.d = p, scores.ldd = n;
      scores.alpha = scale;
      wide_product(scores);
      scores.a = gy, scores.lda = out_stride, scores.b = values, scores.d = ds, scores.alpha = 1;
      wide_product(scores);
      for (int64_t i = 0; i < count; ++i) {
        const float delta = dot_row(gy + i * out_stride, y + i * out_stride, a.d);
        probabilities_and_gradient(p + i * n, ds + i * n, mask, a.lse[item * a.t + first + i], delta, a.t);
      }
      WideProduct sums{.trans_a = true, .m = a.t, .n = a.d, .k = count};
      sums.lda = n, sums.b = tile, sums.ldd = stride, sums.beta = first == 0 ? 0.0f : 1.0f;
      pack(false, gy, out_stride, count, a.d, tile);
      sums.a = p, sums.d = gv;
      wide_product(sums);
      pack(false, q_tile, stride, count, a.d, tile);
      sums.a = ds, sums.d = gk, sums.alpha = scale;
      wide_product(sums);
      wide_product({.m = count,
                    .n = a.d,
                    .k = a.t,
                    .a = ds,
                    .lda = n,
                    .b = key_rows,
                    .d = gq + first * stride,
                    .ldd = stride,
                    .alpha = scale});
    }
  }
}

}  // namespace occam
