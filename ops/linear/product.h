#pragma once
// The products of a linear layer and what is fused with them, on tensors without a graph. Shared by the ops
// linear and mlp. x [..., i], w [o, i] and b [o] (undefined: none) as in op.h.
#include "core/tensor.h"

namespace occam::raw {

/// x w^T + b, [..., o]
Tensor times_weight(const Tensor& x, const Tensor& w, const Tensor& b);

/// y = gelu(z) of z = x w^T + b as it is stored; z is undefined unless kept.
struct GeluProduct {
  Tensor y, z;
};
GeluProduct times_weight_gelu(const Tensor& x, const Tensor& w, const Tensor& b, bool keep);

/// What a product of few rows takes along; all may be undefined. norm_weight, norm_bias [i]: rows of x are
/// normalised first. residual [..., o]: is added last.
struct FewRowsExtras {
  Tensor norm_weight, norm_bias, residual;
  double eps = 0;
  bool gelu = false;
};
/// f(norm(x) w^T + b) + residual as one kernel; undefined where none serves this.
Tensor few_rows_product(const Tensor& x, const Tensor& w, const Tensor& b, const FewRowsExtras& extras);

/// g w, of shape `x`: the gradient of x.
Tensor input_gradient(const Tensor& g, const Tensor& w, const Shape& x);

/// The gradient g of gelu(z) becomes that of z: g gelu'(z).
Tensor through_gelu(const Tensor& z, const Tensor& g);

/// (g w) gelu'(z): both at once, for the layer behind a GELU; `columns` is its sum over all rows, f32 on a
/// GPU, when wanted.
struct GeluGradient {
  Tensor z, columns;
};
GeluGradient input_gradient_gelu(const Tensor& g, const Tensor& w, const Tensor& z, bool want_columns);

/// w: g^T x; b: sums of g over its rows. Each of the dtype asked for where the device gives it (f32 beside
/// bf16 products), undefined where not wanted.
struct ParameterGradients {
  Tensor w, b;
};
struct ParameterWants {
  bool w = false, b = false;
  DType w_dtype = DType::f32, b_dtype = DType::f32;
};
ParameterGradients parameter_gradients(const Tensor& g, const Tensor& x, const ParameterWants& wants);

}  // namespace occam::raw
