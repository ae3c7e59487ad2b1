#include "ops/linear/op.h"

#include <algorithm>

#include "ops/activation/kernel.h"
#include "ops/blas.h"
#include "ops/linear/kernel.h"
#include "ops/op.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

void add_bias(const Tensor& y, const Tensor& b, const Tensor& out, bool gelu, bool keep) {
  int64_t columns = y.size(-1), rows = columns ? y.numel() / columns : 0;
  if (y.is_cuda()) {
    if (!b && !gelu) return;
    dispatch_cuda(y.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::bias_gelu(y.data<T>(), b ? b.data<T>() : nullptr, out.data<T>(), rows, columns,
                                       gelu, keep, current_stream(y.device()).handle));
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

/// gy * gelu'(z)
Tensor through_gelu(const Tensor& z, const Tensor& gy) {
  Tensor g = empty_like(z);
  if (z.is_cuda()) {
    dispatch_cuda(z.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::activation_bwd(kernels::Activation::gelu, z.data<T>(), gy.data<T>(), g.data<T>(),
                                            z.numel(), current_stream(z.device()).handle));
    });
  } else {
    dispatch_float(z.dtype(), [&]<class T>() {
      kernels::activation_bwd_cpu(kernels::Activation::gelu, z.data<T>(), gy.data<T>(), g.data<T>(),
                                  z.numel());
    });
  }
  return g;
}

struct Linear {
  struct Attrs {
    LinearActivation activation = LinearActivation::none;
  };
  static constexpr OpInfo info{.name = "linear",
                               .contract = "x: ... i, w: o i, b?: o -> ... o",
                               .bound = Bound::compute,
                               .hint = "weights are stored (out, in)"};

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    const Tensor &x = in[0], &w = in[1], &b = in[2];
    int64_t k = w.size(1), n = w.size(0), rows = x.numel() / std::max<int64_t>(k, 1);
    bool gelu = a.activation == LinearActivation::gelu;
    Tensor z = empty(x.shape().with(-1, n), options_of(x));
    Product p{.device = x.device(), .dtype_ab = x.dtype(), .dtype_d = x.dtype(), .trans_b = true};
    p.m = rows, p.n = n, p.k = k;
    matrix_product(p, x.data_ptr(), w.data_ptr(), z.data_ptr());
    bool keep = gelu && c.recording();
    Tensor y = keep ? empty_like(z) : z;
    add_bias(z, b, y, gelu, keep);
    c.save({c.needs(1) ? x : Tensor(), c.needs(0) ? w : Tensor(), keep ? z : Tensor()});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor x = c.saved(0), w = c.saved(1), z = c.saved(2), g = z ? through_gelu(z, gy[0]) : gy[0];
    const Shape &xs = c.shape_of(0), &ws = c.shape_of(1);
    int64_t k = ws[1], n = ws[0], rows = xs.numel() / std::max<int64_t>(k, 1);
    Grads grads(3);
    Product p{.device = g.device(), .dtype_ab = g.dtype(), .dtype_d = g.dtype()};
    if (c.needs(0)) {  // gx = g w
      grads[0] = empty(xs, options_of(g));
      p.m = rows, p.n = k, p.k = n;
      matrix_product(p, g.data_ptr(), w.data_ptr(), grads[0].data_ptr());
    }
    if (c.needs(1)) {  // gw = g^T x
      p.dtype_d = c.grad_dtype_of(1) == DType::f32 ? DType::f32 : g.dtype();
      grads[1] = empty(ws, {p.dtype_d, g.device()});
      p.trans_a = true;
      p.m = n, p.n = k, p.k = rows;
      if (rows == 0)
        grads[1].zero_();
      else
        matrix_product(p, g.data_ptr(), x.data_ptr(), grads[1].data_ptr());
    }
    if (c.needs(2))
      grads[2] =
          raw::sum_to_shape(g, c.shape_of(2), c.grad_dtype_of(2) == DType::f32 ? DType::f32 : g.dtype());
    return grads;
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    double rows = double(in[0].numel()) / double(std::max<int64_t>(in[1][1], 1)),
           out = rows * double(in[1][0]);
    return {2 * out * double(in[1][1]), bytes_of(in, dtype) + out * double(size_of(dtype))};
  }
};

}  // namespace

Tensor linear(const Tensor& x, const Tensor& w, const Tensor& b, LinearActivation activation) {
  return apply<Linear>({x, w, b}, {activation})[0];
}

OCCAM_REGISTER(linear, Linear);

}  // namespace occam
