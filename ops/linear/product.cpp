#include "ops/linear/product.h"

#include <algorithm>

#include "ops/activation/kernel.h"
#include "ops/blas.h"
#include "ops/linear/kernel.h"
#include "ops/op.h"
#include "ops/reduce/op.h"

namespace occam::raw {

namespace {

int64_t rows_of(const Tensor& t) { return t.size(-1) ? t.numel() / t.size(-1) : 0; }

Product product_like(const Tensor& a) {
  return {.device = a.device(), .dtype_ab = a.dtype(), .dtype_d = a.dtype()};
}

/// y + b, and out = gelu of that (out may be y, which else keeps the sum).
void add_bias(const Tensor& y, const Tensor& b, const Tensor& out, bool gelu) {
  const int64_t columns = y.size(-1), rows = rows_of(y);
  if (!b && !gelu) return;
  if (y.is_cuda()) {
    dispatch_cuda(y.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::bias_gelu(y.data<T>(), b ? b.data<T>() : nullptr, out.data<T>(), rows, columns,
                                       gelu, !out.is_same(y), current_stream(y.device()).handle));
    });
    return;
  }
  dispatch_float(y.dtype(), [&]<class T>() {
    if (b) {
      T* p = y.data<T>();
      const T* bias = b.data<T>();
#pragma omp parallel for if (rows * columns > 16384)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) p[r * columns + c] += bias[c];
    }
    if (gelu) kernels::activation_fwd_cpu(kernels::Activation::gelu, y.data<T>(), out.data<T>(), y.numel());
  });
}

Product forward_product(const Tensor& x, const Tensor& w) {
  Product p = product_like(x);
  p.trans_b = true;
  p.m = rows_of(x), p.n = w.size(0), p.k = w.size(1);
  return p;
}

#if OCCAM_CUDA
/// x w^T + b on the GPU's own kernel; false when it does not serve this.
bool fused_gelu(const Tensor& x, const Tensor& w, const Tensor& b, const GeluProduct& out) {
  if (!x.is_cuda() || x.dtype() != DType::bf16) return false;
  kernels::FusedProduct f{.m = rows_of(x), .n = w.size(0), .k = w.size(1)};
  f.a = x.data<bf16>(), f.b = w.data<bf16>(), f.bias = b ? b.data<bf16>() : nullptr;
  f.d = out.y.data<bf16>(), f.z = out.z ? out.z.data<bf16>() : nullptr;
  f.epilogue = out.z ? kernels::ProductEpilogue::gelu_keep : kernels::ProductEpilogue::gelu;
  if (!kernels::fused_product_supported(f)) return false;
  kernels::fused_product(f, current_stream(x.device()).handle);
  return true;
}

bool few_rows(const Tensor& x, const Tensor& w, const Tensor& b, const FewRowsExtras& e, const Tensor& y) {
  if (!x.is_cuda() || x.dtype() != DType::bf16) return false;
  auto data = [](const Tensor& t) { return t ? t.data<bf16>() : nullptr; };
  kernels::RowsProduct p{.m = rows_of(x), .n = w.size(0), .k = w.size(1)};
  p.x = data(x), p.w = data(w), p.bias = data(b), p.y = data(y);
  p.norm_weight = data(e.norm_weight), p.norm_bias = data(e.norm_bias), p.residual = data(e.residual);
  p.eps = float(e.eps), p.gelu = e.gelu;
  if (!kernels::rows_product_supported(p)) return false;
  kernels::rows_product(p, current_stream(x.device()).handle);
  return true;
}

bool fused_gelu_gradient(const Tensor& g, const Tensor& w, const Tensor& z, const GeluGradient& out) {
  if (!g.is_cuda() || g.dtype() != DType::bf16) return false;
  kernels::FusedProduct f{.m = rows_of(g), .n = w.size(1), .k = w.size(0)};
  f.a = g.data<bf16>(), f.b = w.data<bf16>();
  f.d = out.z.data<bf16>(), f.z = z.data<bf16>();
  f.epilogue = kernels::ProductEpilogue::gelu_gradient;
  Tensor scratch;
  if (out.columns) {
    f.bias_gradient = out.columns.data<float>();
    scratch = empty({kernels::fused_product_scratch(f)}, options_of(out.columns));
    f.scratch = scratch.data<float>();
  }
  if (!kernels::fused_product_supported(f)) return false;
  kernels::fused_product(f, current_stream(g.device()).handle);
  return true;
}
#else
bool few_rows(const Tensor&, const Tensor&, const Tensor&, const FewRowsExtras&, const Tensor&) {
  return false;
}
bool fused_gelu(const Tensor&, const Tensor&, const Tensor&, const GeluProduct&) { return false; }
bool fused_gelu_gradient(const Tensor&, const Tensor&, const Tensor&, const GeluGradient&) { return false; }
#endif

}  // namespace

Tensor few_rows_product(const Tensor& x, const Tensor& w, const Tensor& b, const FewRowsExtras& extras) {
  Tensor y = empty(x.shape().with(-1, w.size(0)), options_of(x));
  return few_rows(x, w, b, extras, y) ? y : Tensor();
}

Tensor times_weight(const Tensor& x, const Tensor& w, const Tensor& b) {
  Tensor y = empty(x.shape().with(-1, w.size(0)), options_of(x));
  if (few_rows(x, w, b, {}, y)) return y;
  Product p = forward_product(x, w);
  if (b) p.bias = b.data_ptr();
  const bool fuses = b && product_fuses(p, x.data_ptr(), w.data_ptr(), y.data_ptr());
  if (!fuses) p.bias = nullptr;
  matrix_product(p, x.data_ptr(), w.data_ptr(), y.data_ptr());
  if (!fuses) add_bias(y, b, y, false);
  return y;
}

GeluProduct times_weight_gelu(const Tensor& x, const Tensor& w, const Tensor& b, bool keep) {
  GeluProduct out;
  out.y = empty(x.shape().with(-1, w.size(0)), options_of(x));
  if (keep) out.z = empty_like(out.y);
  if (out.y.numel() == 0) return out;
  if (!keep && few_rows(x, w, b, {.gelu = true}, out.y)) return out;
  if (fused_gelu(x, w, b, out)) return out;
  const Tensor& z = keep ? out.z : out.y;
  Product p = forward_product(x, w);
  const bool fuses = z.is_cpu() && b;  // on a GPU bias and GELU are one pass
  if (fuses) p.bias = b.data_ptr();
  if (z.is_cpu()) {
    p.gelu = out.y.data_ptr();
    if (!product_fuses(p, x.data_ptr(), w.data_ptr(), z.data_ptr())) p.gelu = nullptr;
  }
  matrix_product(p, x.data_ptr(), w.data_ptr(), z.data_ptr());
  if (p.gelu != nullptr) return out;
  add_bias(z, fuses ? Tensor() : b, out.y, true);
  return out;
}

Tensor input_gradient(const Tensor& g, const Tensor& w, const Shape& x) {
  Tensor gx = empty(x, options_of(g));
  Product p = product_like(g);
  p.m = rows_of(gx), p.n = w.size(1), p.k = w.size(0);
  matrix_product(p, g.data_ptr(), w.data_ptr(), gx.data_ptr());
  return gx;
}

Tensor through_gelu(const Tensor& z, const Tensor& g) {
  Tensor gz = empty_like(z);
  if (z.is_cuda()) {
    dispatch_cuda(z.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::activation_bwd(kernels::Activation::gelu, z.data<T>(), g.data<T>(), gz.data<T>(),
                                            z.numel(), current_stream(z.device()).handle));
    });
  } else {
    dispatch_float(z.dtype(), [&]<class T>() {
      kernels::activation_bwd_cpu(kernels::Activation::gelu, z.data<T>(), g.data<T>(), gz.data<T>(),
                                  z.numel());
    });
  }
  return gz;
}

GeluGradient input_gradient_gelu(const Tensor& g, const Tensor& w, const Tensor& z, bool want_columns) {
  const DType wide = g.is_cuda() ? DType::f32 : g.dtype();
  GeluGradient out;
  if (want_columns) out.columns = empty({w.size(1)}, {wide, g.device()});
  if (z.numel() > 0) {
    out.z = empty_like(z);
    if (fused_gelu_gradient(g, w, z, out)) return out;
  }
  Product p = product_like(g);
  p.m = rows_of(z), p.n = w.size(1), p.k = w.size(0), p.slope_at = z.data_ptr();
  if (out.z && g.is_cpu() && product_fuses(p, g.data_ptr(), w.data_ptr(), out.z.data_ptr()))
    matrix_product(p, g.data_ptr(), w.data_ptr(), out.z.data_ptr());
  else
    out.z = through_gelu(z, input_gradient(g, w, z.shape()));
  if (want_columns) out.columns = sum_to_shape(out.z, {w.size(1)}, wide);
  return out;
}

ParameterGradients parameter_gradients(const Tensor& g, const Tensor& x, const ParameterWants& wants) {
  const int64_t n = g.size(-1), rows = rows_of(g);
  ParameterGradients out;
  if (!wants.w && !wants.b) return out;
  Product p = product_like(g);
  p.dtype_d = wants.w ? wants.w_dtype : wants.b_dtype;
  p.trans_a = true;
  p.m = n, p.n = x.size(-1), p.k = rows;
  Tensor w = empty({p.m, p.n}, {p.dtype_d, g.device()});
  if (wants.b && p.dtype_d == wants.b_dtype) {
    out.b = empty({n}, {p.dtype_d, g.device()});
    p.row_sums = out.b.data_ptr();
    if (!product_fuses(p, g.data_ptr(), x.data_ptr(), w.data_ptr())) p.row_sums = nullptr;
  }
  // With fused sums the product is made for b alone too: b must not depend on whether w is trained.
  if (rows == 0)
    w.zero_();
  else if (wants.w || p.row_sums != nullptr)
    matrix_product(p, g.data_ptr(), x.data_ptr(), w.data_ptr());
  if (wants.w) out.w = w;
  if (wants.b && p.row_sums == nullptr) out.b = sum_to_shape(g, {n}, wants.b_dtype);
  return out;
}

}  // namespace occam::raw
