#include "ops/wide_product.h"

#include <algorithm>
#include <cmath>

#include "core/vmath.h"

namespace occam {

namespace {

constexpr int64_t kLanes = 16;
typedef float V __attribute__((vector_size(64), aligned(4), may_alias));

/// Rows of a whose part, times kWideTerms, stays in the L2 cache while panels of b pass.
constexpr int64_t kBlockRows = 112;
/// Rows so far apart meet in few sets of the L1 cache: their parts are copied to rows of kCopied.
constexpr int64_t kFarApart = 512, kCopied = kWideTerms + kLanes;

/// One tile of at most kWideRows x kWideColumns.
struct Tile {
  const float* a;
  int64_t lda;
  const float* b;
  int64_t ldb, k, columns;
  float* d;
  int64_t ldd;
  float alpha, beta;
  const float* bias;
  float* gelu;
  const float* slope_at;
};

/// What is left of a tile beyond the plain sums: alpha and so on of columns that fill no vectors, GELU.
OCCAM_WIDE [[gnu::noinline]] void finish(const Tile& t, const float* sums, int64_t ld, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    float* d = t.d + r * t.ldd;
    for (int64_t c = 0; c < t.columns; ++c) {
      float v = t.alpha * sums[r * ld + c];
      if (t.beta != 0) v += t.beta * d[c];
      d[c] = t.bias != nullptr ? v + t.bias[c] : v;
    }
  }
}
OCCAM_WIDE [[gnu::noinline]] void through_gelu(const Tile& t, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    float* d = t.d + r * t.ldd;
    if (t.gelu != nullptr) {
      float* y = t.gelu + r * t.ldd;
      for (int64_t c = 0; c < t.columns; ++c) y[c] = gelu_of(d[c]);
    } else {
      const float* z = t.slope_at + r * t.ldd;
      for (int64_t c = 0; c < t.columns; ++c) d[c] *= gelu_slope(z[c]);
    }
  }
}

template <int kRows, int kVectors, bool kTransA>
OCCAM_WIDE void tile(const Tile& t) {
  V sum[kRows][kVectors] = {};
  const float *a = t.a, *b = t.b;
  const int64_t row = kTransA ? 1 : t.lda, step = kTransA ? t.lda : 1, ldb = t.ldb;
  for (int64_t k = t.k; k > 0; --k) {
    V columns[kVectors];
#pragma GCC unroll 3
    for (int c = 0; c < kVectors; ++c) columns[c] = reinterpret_cast<const V*>(b)[c];
#pragma GCC unroll 9
    for (int r = 0; r < kRows; ++r) {
      const float x = a[r * row];
#pragma GCC unroll 3
      for (int c = 0; c < kVectors; ++c) sum[r][c] += x * columns[c];
    }
    a += step, b += ldb;
  }
  if (t.columns == kVectors * kLanes) {
#pragma GCC unroll 9
    for (int r = 0; r < kRows; ++r) {
      V* d = reinterpret_cast<V*>(t.d + r * t.ldd);
#pragma GCC unroll 3
      for (int c = 0; c < kVectors; ++c) {
        V v = t.alpha * sum[r][c];
        if (t.beta != 0) v += t.beta * d[c];
        if (t.bias != nullptr) v += reinterpret_cast<const V*>(t.bias)[c];
        d[c] = v;
      }
    }
  } else {
    alignas(64) float sums[kRows][kVectors * kLanes];
#pragma GCC unroll 9
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
      for (int c = 0; c < kVectors; ++c) reinterpret_cast<V*>(sums[r])[c] = sum[r][c];
    finish(t, sums[0], kVectors * kLanes, kRows);
  }
  if (t.gelu != nullptr || t.slope_at != nullptr) through_gelu(t, kRows);
}

using TileFn = void (*)(const Tile&);
template <int kVectors, bool kTransA>
TileFn tile_of(int64_t rows) {
  static constexpr TileFn kTiles[] = {
      tile<1, kVectors, kTransA>, tile<2, kVectors, kTransA>, tile<3, kVectors, kTransA>,
      tile<4, kVectors, kTransA>, tile<5, kVectors, kTransA>, tile<6, kVectors, kTransA>,
      tile<7, kVectors, kTransA>, tile<8, kVectors, kTransA>, tile<9, kVectors, kTransA>};
  return kTiles[rows - 1];
}
template <bool kTransA>
TileFn tile_of(int64_t rows, int64_t columns) {
  return columns <= kLanes       ? tile_of<1, kTransA>(rows)
         : columns <= 2 * kLanes ? tile_of<2, kTransA>(rows)
                                 : tile_of<3, kTransA>(rows);
}

OCCAM_WIDE [[gnu::always_inline]] inline void shuffle_rows(const V* from, V* to) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const V &x = from[i], &y = from[i + 8];
    to[2 * i] = __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    to[2 * i + 1] =
        __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}

/// Up to 16 rows, of 16 floats each, become columns of a panel, columns without a row 0.
OCCAM_WIDE [[gnu::always_inline]] inline void transpose16(const float* from, int64_t ld, int64_t rows,
                                                          float* to, int64_t ld_to) {
  V a[kLanes], b[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) a[i] = i < rows ? *reinterpret_cast<const V*>(from + i * ld) : V{};
    // Shuffling rows i and i + 8 perfectly moves one bit of the row's number to the column's; four times all.
#pragma GCC unroll 2
  for (int twice = 0; twice < 2; ++twice) {
    shuffle_rows(a, b);
    shuffle_rows(b, a);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) *reinterpret_cast<V*>(to + i * ld_to) = a[i];
}

OCCAM_WIDE void copy_rows(const float* from, int64_t ld, int64_t rows, int64_t k, float* to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < k; ++i) to[r * kCopied + i] = from[r * ld + i];
}

/// The part of the sums that begins with term first, one of as many terms as others.
struct Part {
  int64_t first, terms;
  bool last;
};
int64_t parts_of(const WideProduct& p) { return std::max<int64_t>(1, (p.k + kWideTerms - 1) / kWideTerms); }
Part part_of(const WideProduct& p, int64_t i) {
  const int64_t parts = parts_of(p), first = i * p.k / parts;
  return {first, (i + 1) * p.k / parts - first, i == parts - 1};
}

/// Rows first to first + rows - 1 of a panel of columns; a and b begin with the part's first term.
void panel_of_rows(const WideProduct& p, const Part& part, int64_t first, int64_t rows, int64_t column,
                   const float* a, int64_t lda, const float* b, int64_t ldb) {
  const int64_t tiles = (rows + kWideRows - 1) / kWideRows;
  Tile t{};
  t.lda = lda, t.b = b, t.ldb = ldb, t.k = part.terms, t.columns = std::min(kWideColumns, p.n - column);
  t.ldd = p.ldd, t.alpha = p.alpha, t.beta = part.first == 0 ? p.beta : 1.0f;
  if (p.bias != nullptr && part.last) t.bias = p.bias + column;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t r = i * rows / tiles, count = (i + 1) * rows / tiles - r;
    const int64_t at = (first + r) * p.ldd + column;
    t.a = a + (p.trans_a ? r : r * lda), t.d = p.d + at;
    if (p.gelu != nullptr && part.last) t.gelu = p.gelu + at;
    if (p.slope_at != nullptr && part.last) t.slope_at = p.slope_at + at;
    (p.trans_a ? tile_of<true>(count, t.columns) : tile_of<false>(count, t.columns))(t);
  }
}

const float* rows_at(const WideProduct& p, int64_t row, int64_t term) {
  return p.a + (p.trans_a ? row + term * p.lda : row * p.lda + term);
}

}  // namespace

OCCAM_WIDE void wide_pack_vector(bool trans, const float* b, int64_t ldb, int64_t k, int64_t columns,
                                 float* to, int64_t ld_to) {
  int64_t done = 0;
  if (trans)
    for (; done + kLanes <= k; done += kLanes) transpose16(b + done, ldb, columns, to + done * ld_to, ld_to);
  for (int64_t i = done; i < k; ++i) {
    float* row = to + i * ld_to;
    const float* from = trans ? b + i : b + i * ldb;
    if (!trans && columns == kLanes) {
      *reinterpret_cast<V*>(row) = *reinterpret_cast<const V*>(from);
      continue;
    }
    for (int64_t c = 0; c < columns; ++c) row[c] = from[trans ? c * ldb : c];
    for (int64_t c = columns; c < kLanes; ++c) row[c] = 0;
  }
}

void wide_pack(bool trans, const float* b, int64_t ldb, int64_t k, int64_t n, int64_t first, int64_t last,
               float* to) {
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t column = panel * kWideColumns, end = std::min(n, column + kWideColumns);
    const int64_t width = wide_padded(end - column);
    for (int64_t c = column; c < end; c += kLanes)
      wide_pack_vector(trans, b + (trans ? c * ldb : c), ldb, k, std::min(end - c, kLanes),
                       to + column * k + c - column, width);
  }
}

void wide_product(const WideProduct& p) {
  const int64_t blocks = (p.m + kBlockRows - 1) / kBlockRows;
  const bool copies = !p.trans_a && p.lda % kFarApart == 0 && p.n > kWideColumns;
  alignas(64) float copy[kBlockRows * kCopied];
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * p.m / blocks, rows = (block + 1) * p.m / blocks - first;
    for (int64_t i = 0; i < parts_of(p); ++i) {
      const Part part = part_of(p, i);
      const float* a = rows_at(p, first, part.first);
      if (copies) copy_rows(a, p.lda, rows, part.terms, copy);
      for (int64_t column = 0; column < p.n; column += kWideColumns) {
        const int64_t ldb = p.ldb > 0 ? p.ldb : wide_padded(std::min(kWideColumns, p.n - column));
        const float* b = p.b + (p.ldb > 0 ? column : column * p.k) + part.first * ldb;
        panel_of_rows(p, part, first, rows, column, copies ? copy : a, copies ? kCopied : p.lda, b, ldb);
      }
    }
  }
}

void wide_product_packing(const WideProduct& p, bool trans_b) {
  alignas(64) float packed[kWideColumns * kWideTerms];
  for (int64_t column = 0; column < p.n; column += kWideColumns)
    for (int64_t i = 0; i < parts_of(p); ++i) {
      const Part part = part_of(p, i);
      const float* b = p.b + (trans_b ? column * p.ldb + part.first : part.first * p.ldb + column);
      const int64_t columns = std::min(kWideColumns, p.n - column);
      wide_pack(trans_b, b, p.ldb, part.terms, columns, 0, 1, packed);
      panel_of_rows(p, part, 0, p.m, column, rows_at(p, 0, part.first), p.lda, packed, wide_padded(columns));
    }
}

}  // namespace occam
