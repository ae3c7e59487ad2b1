#pragma once
// Matrix products on either device behind one call: on the CPU own tiles (wide_product.h) or OpenBLAS, on a
// GPU cuBLASLt.
#include "core/tensor.h"

namespace occam {

/// Row-major d[m,n] = alpha op(a)[m,k] op(b)[k,n] + beta d; op(x) is x or, with trans, its transpose. A batch
/// repeats it at the strides given. Pointers are those of contiguous tensors of `dtype_ab` (inputs) and
/// `dtype_d` on `device`.
struct Product {
  Device device;
  DType dtype_ab = DType::f32, dtype_d = DType::f32;
  bool trans_a = false, trans_b = false;
  int64_t m = 0, n = 0, k = 0;
  int64_t lda = 0, ldb = 0, ldd = 0;  // 0: packed
  int64_t batch = 1, stride_a = 0, stride_b = 0, stride_d = 0;
  double alpha = 1, beta = 0;
  /// Fused, of d's dtype; ask product_fuses() before. `bias` [batch,n] is added to each row of d; of one
  /// matrix, `row_sums` [m] receives the sums over k of op(a) (the bias gradient beside a weight gradient).
  const void* bias = nullptr;
  void* row_sums = nullptr;
  /// On the CPU, of one matrix. `gelu` receives GELU of d's elements (d itself, if that is not wanted apart);
  /// with `slope_at`, elements of d are multiplied by the slope of GELU there.
  void* gelu = nullptr;
  const void* slope_at = nullptr;
};
void matrix_product(const Product& p, const void* a, const void* b, void* d);
/// Can the device do this product with its bias or row_sums?
bool product_fuses(const Product& p, const void* a, const void* b, void* d);

/// f32 products on the CUDA tensor cores in TF32 (10-bit mantissa) while set; default off: true f32.
void set_tf32(bool allowed);
bool tf32_allowed();

}  // namespace occam
