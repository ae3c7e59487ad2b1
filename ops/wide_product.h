#pragma once
// Products of f32 matrices by vectors of 64 bytes, for processors with wide_vectors(). One thread's work
// each; who calls them shares rows among threads. Sums run over k in order, in parts of kWideTerms, whatever
// the rows and columns beside them: same bits for any division of the work.
#include <cstdint>

namespace occam {

constexpr int64_t kWideRows = 9, kWideColumns = 48;  // a tile: 27 sums of 16 floats stay in registers
constexpr int64_t kWideTerms = 192;

/// Columns of a panel of the packed form, up to its last vector.
constexpr int64_t wide_padded(int64_t n) { return (n + 15) & ~int64_t{15}; }
/// Floats that the packed form of b[k,n] has: panels of kWideColumns columns, the last one narrower, each
/// [k][columns], filled up with zeros to whole vectors.
constexpr int64_t wide_packed(int64_t k, int64_t n) { return wide_padded(n) * k; }
/// Panels first to last - 1; `to` is the place of panel 0.
void wide_pack(bool trans, const float* b, int64_t ldb, int64_t k, int64_t n, int64_t first, int64_t last,
               float* to);
/// One vector's columns, 16 at most and zeros beside them, of rows ld_to apart.
void wide_pack_vector(bool trans, const float* b, int64_t ldb, int64_t k, int64_t columns, float* to,
                      int64_t ld_to);

/// d[m,n] = alpha op(a)[m,k] b[k,n] + beta d + bias; then gelu = GELU(d), which may be d, or d *=
/// GELU'(slope_at).
struct WideProduct {
  bool trans_a = false;
  int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  int64_t lda = 0;
  const float* b = nullptr;  // packed; with ldb: rows of that stride, n a multiple of 16
  int64_t ldb = 0;
  float* d = nullptr;
  int64_t ldd = 0;
  float alpha = 1, beta = 0;
  const float* bias = nullptr;
  float* gelu = nullptr;  // of stride ldd, like slope_at
  const float* slope_at = nullptr;
};
void wide_product(const WideProduct& p);
/// The same of b [k,n], or its transpose, as it is, of stride ldb: a panel at a time is packed on the stack.
/// For products too small to share.
void wide_product_packing(const WideProduct& p, bool trans_b);

}  // namespace occam
