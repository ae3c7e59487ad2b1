#include "ops/attention_stats/cpu.h"

#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "core/tensor.h"
#include "core/vmath.h"
#include "ops/blas.h"

namespace occam {

using kernels::MapLayout;
using kernels::MapSource;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kTile = 32;  // rows of scores held at a time

/// e^x for x <= 0 without a call, within 2e-15: x = n ln 2 + r, |r| <= ln 2 / 2, Taylor to r^11. 0 below
/// -708.
inline double exp_negative(double x) {
  double clamped = x < -708.0 ? -708.0 : x;
  double shifted = clamped * 1.44269504088896340736 + 0x1.8p52;  // the integer n in the low bits
  int64_t n = std::bit_cast<int64_t>(shifted) - std::bit_cast<int64_t>(0x1.8p52);
  double rounded = shifted - 0x1.8p52;
  double r = clamped - rounded * 6.93147180369123816490e-01;  // ln 2 in two parts
  r -= rounded * 1.90821492927058770002e-10;
  double p = 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  double y = p * std::bit_cast<double>((n + 1023) << 52);
  return x < -708.0 ? 0.0 : y;
}

/// Scores to probabilities, in place. Returns the entropy in nats: with a = e^u / Z, -sum a ln a =
/// ln Z - sum a u, which needs no logarithm of an entry. NaN when a score is not finite.
OCCAM_VECTORIZED double softmax_row(double* s, int64_t t) {
  double largest = -INFINITY, sum = 0, weighted = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < t; ++j) largest = std::max(largest, s[j]);
#pragma omp simd reduction(+ : sum, weighted)
  for (int64_t j = 0; j < t; ++j) {
    double u = s[j] - largest;
    s[j] = exp_negative(u);
    sum += s[j];
    weighted += s[j] * u;
  }
  double inverse = 1 / sum;
  for (int64_t j = 0; j < t; ++j) s[j] *= inverse;
  return std::log(sum) - weighted * inverse;
}

/// |a| / sum |a|, in place; the entropy as above.
double normalise_row(double* a, int64_t t) {
  double sum = 0, entropy = 0;
  for (int64_t j = 0; j < t; ++j) sum += std::abs(a[j]);
  for (int64_t j = 0; j < t; ++j) {
    a[j] = std::abs(a[j]) / sum;
    if (a[j] != 0) entropy -= a[j] * std::log(a[j]);
  }
  return entropy;
}

struct Tally {
  double below = 0, below_uniform = 0, squares = 0;
};
OCCAM_VECTORIZED Tally tally_row(const double* a, int64_t t) {
  const double threshold = kShareThreshold * (1 - kTie), uniform = 1 / double(t) * (1 - kTie);
  double below = 0, below_uniform = 0, squares = 0;
#pragma omp simd reduction(+ : below, below_uniform, squares)
  for (int64_t j = 0; j < t; ++j) {
    below += a[j] < threshold ? 1.0 : 0.0;
    below_uniform += a[j] < uniform ? 1.0 : 0.0;
    squares += a[j] * a[j];
  }
  return {below, below_uniform, squares};
}

OCCAM_VECTORIZED void add_row(double* sum, const double* a, int64_t t) {
  for (int64_t j = 0; j < t; ++j) sum[j] += a[j];
}

OCCAM_VECTORIZED void add_row_and_squares(double* sum, double* squares, const double* a, int64_t t) {
  for (int64_t j = 0; j < t; ++j) sum[j] += a[j], squares[j] += a[j] * a[j];
}

/// Distances between cells of the grid by their offset: [2 grid_h - 1][2 grid_w - 1].
std::vector<double> distances(const MapLayout& m) {
  std::vector<double> table;
  for (int64_t y = 1 - m.grid_h; y < m.grid_h; ++y)
    for (int64_t x = 1 - m.grid_w; x < m.grid_w; ++x) table.push_back(std::sqrt(double(y * y + x * x)));
  return table;
}

double window_mass(const double* patches, int64_t y, int64_t x, int64_t reach, const MapLayout& m) {
  double mass = 0;
  for (int64_t r = std::max<int64_t>(0, y - reach); r <= std::min(m.grid_h - 1, y + reach); ++r)
    for (int64_t c = std::max<int64_t>(0, x - reach); c <= std::min(m.grid_w - 1, x + reach); ++c)
      mass += patches[r * m.grid_w + c];
  return mass;
}

/// Values of the row of patch number `patch`. attention_distance is NaN when it has no mass on patches.
OCCAM_VECTORIZED void spatial_stats(const double* patches, int64_t patch, const MapLayout& m,
                                    const double* table, double* out) {
  int64_t y = patch / m.grid_w, x = patch % m.grid_w, width = 2 * m.grid_w - 1;
  double mass = 0, weighted = 0;
  for (int64_t r = 0; r < m.grid_h; ++r) {
    const double* offsets = table + (r - y + m.grid_h - 1) * width + (m.grid_w - 1 - x);
    const double* a = patches + r * m.grid_w;
#pragma omp simd reduction(+ : mass, weighted)
    for (int64_t c = 0; c < m.grid_w; ++c) mass += a[c], weighted += a[c] * offsets[c];
  }
  out[kAttentionDistance] = mass > 0 ? weighted / mass : kNan;
  out[kWindowMass3] = window_mass(patches, y, x, 1, m);
  out[kWindowMass5] = window_mass(patches, y, x, 2, m);
}

/// The statistics that need the row in order; `a` is sorted in place.
void order_stats(double* a, int64_t n, double* out) {
  std::sort(a, a + n, std::greater<>());
  double ranked = 0, mass = 0;
  int64_t tenth = (n + 9) / 10, support = 0;
  for (int64_t k = 1; k <= n; ++k) {
    ranked += a[k - 1] * (double(k) - 0.5);  // place k from the top is place n + 1 - k from below
    mass += a[k - 1];
    if (support == 0 && mass >= kSupportMass * (1 - kTie)) support = k;
    if (k == std::min<int64_t>(n, 1)) out[kTopMass1] = mass;
    if (k == std::min<int64_t>(n, 5)) out[kTopMass5] = mass;
    if (k == std::min<int64_t>(n, 10)) out[kTopMass10] = mass;
    if (k == tenth) out[kTopMassTenth] = mass;
  }
  out[kGini] = 1 - 2 * ranked / double(n);
  out[kMassSupport] = double(support) / double(n);
}

/// All statistics of row `i`, except sink_mass_max, which is of the whole map. `a` is left sorted.
void row_values(double* a, double entropy, int64_t i, const MapLayout& m, const double* table, double* out) {
  std::fill(out, out + kAttentionStatCount, kNan);
  if (!std::isfinite(entropy)) return;
  double n = double(m.t);
  Tally tally = tally_row(a, m.t);
  out[kThresholdShare] = tally.below / n;
  out[kThresholdShareUniform] = tally.below_uniform / n;
  out[kEntropy] = entropy / std::log(n);
  out[kEffectiveSupport] = std::exp(entropy);
  out[kHoyer] = (std::sqrt(n) - 1 / std::sqrt(tally.squares)) / (std::sqrt(n) - 1);
  if (m.prefix > 0) out[kSinkMassCls] = a[0];
  if (i >= m.prefix) spatial_stats(a + m.prefix, i - m.prefix, m, table, out);
  if (m.order) order_stats(a, m.t, out);
}

/// Means over the three row sets of one map, from its rows.
class MapSummary {
 public:
  MapSummary(const MapLayout& m, double* columns) : m_(m), prefix_columns_(columns) {
    std::fill(columns, columns + 2 * m.t, 0.0);
  }
  void add(double* a, double entropy, int64_t i, const double* table) {
    add_row(i < m_.prefix ? prefix_columns_ : patch_columns(), a, m_.t);
    double largest = *std::max_element(a, a + m_.t), v[kAttentionStatCount];
    row_values(a, entropy, i, m_, table, v);
    if (i == 0 && m_.prefix > 0) {
      std::copy(v, v + kAttentionStatCount, cls_);
      cls_[kSinkMassMax] = std::isfinite(entropy) ? largest : kNan;
    }
    // A patch row without mass on patches has no distance and is left out of that mean.
    bool has_distance = i < m_.prefix || !std::isfinite(entropy) || !std::isnan(v[kAttentionDistance]);
    for (int k = 0; k < kAttentionStatCount; ++k)
      if (k != kAttentionDistance || has_distance) (i < m_.prefix ? prefix_ : patch_)[k] += v[k];
    if (i >= m_.prefix && has_distance) ++rows_with_distance_;
  }
  template <class T>
  void write(T* out) const {
    double all_rows = double(m_.t), patch_rows = double(m_.t - m_.prefix), all_max = 0, patch_max = 0;
    for (int64_t j = 0; j < m_.t; ++j) {
      patch_max = std::max(patch_max, patch_columns()[j]);
      all_max = std::max(all_max, patch_columns()[j] + prefix_columns_[j]);
    }
    for (int k = 0; k < kAttentionStatCount; ++k) {
      bool spatial = k == kAttentionDistance || k == kWindowMass3 || k == kWindowMass5;
      double patch = patch_[k] / (k == kAttentionDistance ? double(rows_with_distance_) : patch_rows);
      double all = spatial ? patch : (patch_[k] + prefix_[k]) / all_rows;
      if (k == kSinkMassMax) {  // NaN when a row was not finite, as for the other keys
        bool finite = std::isfinite(patch_[kEffectiveSupport] + prefix_[kEffectiveSupport]);
        all = finite ? all_max / all_rows : kNan;
        patch = std::isfinite(patch_[kEffectiveSupport]) ? patch_max / patch_rows : kNan;
      }
      out[k] = T(all);
      out[kAttentionStatCount + k] = T(m_.prefix > 0 ? cls_[k] : kNan);
      out[2 * kAttentionStatCount + k] = T(patch);
    }
  }

 private:
  double* patch_columns() const { return prefix_columns_ + m_.t; }
  const MapLayout& m_;
  double* prefix_columns_;  // column sums over prefix rows, then over patch rows
  double prefix_[kAttentionStatCount] = {}, patch_[kAttentionStatCount] = {}, cls_[kAttentionStatCount] = {};
  int64_t rows_with_distance_ = 0;
};

/// Rows [first, first + count) of map (b, h) as probabilities in `rows` [count, t], their entropies beside
/// them. `room` holds the q rows and all keys of a head in f64.
template <class T>
class RowMaker {
 public:
  RowMaker(const MapSource<T>& source, int64_t t, double* room) : s_(source), t_(t), room_(room) {}
  static int64_t room_needed(const MapSource<T>& s, int64_t t) { return s.maps ? 0 : (t + kTile) * s.d; }

  void open(int64_t b, int64_t h) {
    b_ = b, h_ = h;
    if (s_.maps == nullptr) copy(1, 0, t_, room_);
  }
  void rows(int64_t first, int64_t count, double* rows, double* entropy) {
    if (s_.maps != nullptr) {
      const T* from = s_.maps + ((b_ * s_.h + h_) * t_ + first) * t_;
      std::copy(from, from + count * t_, rows);
      for (int64_t i = 0; i < count; ++i) entropy[i] = normalise_row(rows + i * t_, t_);
      return;
    }
    double* q = room_ + t_ * s_.d;
    copy(0, first, count, q);
    matrix_product({.dtype_ab = DType::f64,
                    .dtype_d = DType::f64,
                    .trans_b = true,
                    .m = count,
                    .n = t_,
                    .k = s_.d,
                    .alpha = s_.scale},
                   q, room_, rows);
    for (int64_t i = 0; i < count; ++i) entropy[i] = softmax_row(rows + i * t_, t_);
  }

 private:
  void copy(int64_t part, int64_t first, int64_t count, double* to) const {
    for (int64_t i = 0; i < count; ++i) {
      const T* from = s_.qkv + (((b_ * t_ + first + i) * 3 + part) * s_.h + h_) * s_.d;
      std::copy(from, from + s_.d, to + i * s_.d);
    }
  }
  const MapSource<T>& s_;
  int64_t t_, b_ = 0, h_ = 0;
  double* room_;
};

/// Taken before a parallel region, where an exception may pass.
Tensor thread_scratch(int64_t count) {
  return empty({int64_t(omp_get_max_threads()), count}, {DType::f64, kCPU});
}

}  // namespace

template <class T>
void attention_stats_cpu(const MapSource<T>& source, const MapLayout& m, T* out) {
  std::vector<double> table = distances(m);
  int64_t room = RowMaker<T>::room_needed(source, m.t), each = room + kTile * m.t + 2 * m.t;
  Tensor scratch = thread_scratch(each);
  double* base = scratch.data<double>();
#pragma omp parallel for schedule(static)
  for (int64_t map = 0; map < source.b * source.h; ++map) {
    double *mine = base + omp_get_thread_num() * each, *rows = mine + room, entropy[kTile];
    RowMaker<T> maker(source, m.t, mine);
    maker.open(map / source.h, map % source.h);
    MapSummary summary(m, rows + kTile * m.t);
    for (int64_t first = 0; first < m.t; first += kTile) {
      int64_t count = std::min(kTile, m.t - first);
      maker.rows(first, count, rows, entropy);
      for (int64_t i = 0; i < count; ++i) summary.add(rows + i * m.t, entropy[i], first + i, table.data());
    }
    summary.write(out + map * 3 * kAttentionStatCount);
  }
}

template <class T>
void attention_moments_cpu(const MapSource<T>& source, int64_t t, T* out) {
  int64_t room = RowMaker<T>::room_needed(source, t), tile = kTile * t, each = room + 3 * tile;
  int64_t tiles = (t + kTile - 1) / kTile;
  Tensor scratch = thread_scratch(each);
  double* base = scratch.data<double>();
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < source.h * tiles; ++item) {
    int64_t h = item / tiles, first = item % tiles * kTile, count = std::min(kTile, t - first);
    double *mine = base + omp_get_thread_num() * each, *rows = mine + room, entropy[kTile];
    double *sum = rows + tile, *squares = sum + tile;
    std::fill(sum, sum + 2 * tile, 0.0);
    RowMaker<T> maker(source, t, mine);
    for (int64_t b = 0; b < source.b; ++b) {
      maker.open(b, h);
      maker.rows(first, count, rows, entropy);
      add_row_and_squares(sum, squares, rows, count * t);
    }
    T* to = out + (h * t + first) * t;
    std::copy(sum, sum + count * t, to);
    std::copy(squares, squares + count * t, to + source.h * t * t);
  }
}

template void attention_stats_cpu(const MapSource<float>&, const MapLayout&, float*);
template void attention_stats_cpu(const MapSource<double>&, const MapLayout&, double*);
template void attention_moments_cpu(const MapSource<float>&, int64_t, float*);
template void attention_moments_cpu(const MapSource<double>&, int64_t, double*);

}  // namespace occam
