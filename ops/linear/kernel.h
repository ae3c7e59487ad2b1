#pragma once
#include <cstdint>

#include "core/half.h"

namespace occam::kernels {

/// y[r, c] = y[r, c] + bias[c]; with `gelu`, out = gelu of that (out may be y) while y keeps the sum when
/// `keep`.
template <class T>
void bias_gelu(T* y, const T* bias, T* out, int64_t rows, int64_t columns, bool gelu, bool keep,
               void* stream);

/// What happens to the f32 sums x = a b^T before they are rounded and stored.
enum class ProductEpilogue : uint8_t {
  gelu,          ///< d = gelu(x + bias)
  gelu_keep,     ///< z = x + bias as it is stored; d = gelu(z): backward sees what forward saw
  gelu_gradient  ///< d = x gelu'(z), z given; bias_gradient = the sums over rows of d as stored
};

/// A product of bf16 matrices and what is fused into it; every matrix is packed.
struct FusedProduct {
  int64_t m = 0, n = 0, k = 0;
  const bf16* a = nullptr;         // [m,k]
  const bf16* b = nullptr;         // [n,k]; for gelu_gradient [k,n]
  const bf16* bias = nullptr;      // [n] or none
  bf16* d = nullptr;               // [m,n]
  bf16* z = nullptr;               // [m,n]: written by gelu_keep, read by gelu_gradient
  float* bias_gradient = nullptr;  // gelu_gradient, [n] or none
  float* scratch = nullptr;        // fused_product_scratch() floats, when there is a bias_gradient
  ProductEpilogue epilogue = ProductEpilogue::gelu;
  int tile = -1;  // the shape of tile by its number, for tests and measurements; -1: chosen by size
};

/// The shapes of tile there are, and "128x128" of one.
int fused_product_tiles();
const char* fused_product_tile_name(int tile);
/// The choice for this product.
int fused_product_tile(const FusedProduct& product);

/// Whether this device (Hopper), these sizes and these pointers can be served; the caller has another way.
bool fused_product_supported(const FusedProduct& product);
int64_t fused_product_scratch(const FusedProduct& product);
void fused_product(const FusedProduct& product, void* stream);

/// A product of bf16 matrices of few rows with what stands before and behind it in a network that computes
/// one image: y = f(norm(x) w^T + bias) + residual. Every matrix is packed.
struct RowsProduct {
  int64_t m = 0, n = 0, k = 0;
  const bf16* x = nullptr;            // [m,k]
  const bf16* w = nullptr;            // [n,k]
  const bf16* bias = nullptr;         // [n] or none
  const bf16* norm_weight = nullptr;  // [k]: rows of x are normalised; or none
  const bf16* norm_bias = nullptr;    // [k], with norm_weight
  const bf16* residual = nullptr;     // [m,n] or none
  bf16* y = nullptr;                  // [m,n]
  float eps = 0;
  bool gelu = false;
  int tile = -1, split = 0;  // for tests and measurements; -1, 0: chosen by size
};

/// The shapes of tile there are, and "32x128" (rows by outputs) of one.
int rows_product_tiles();
const char* rows_product_tile_name(int tile);

/// Whether so many rows of k elements are better served by this than by products made for many rows.
bool rows_product_pays(int64_t rows, int64_t k);
/// Whether it pays, and this device (Hopper), these sizes and these pointers can be served.
bool rows_product_supported(const RowsProduct& product);
void rows_product(const RowsProduct& product, void* stream);

}  // namespace occam::kernels
