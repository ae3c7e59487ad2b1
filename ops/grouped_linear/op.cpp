#include "ops/grouped_linear/op.h"

#include "ops/blas.h"
#include "ops/linear/kernel.h"
#include "ops/op.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

void add_bias(const Tensor& y, const Tensor& b) {
  int64_t columns = b.numel(), rows = columns ? y.numel() / columns : 0;
  if (y.is_cuda()) {
    dispatch_cuda(y.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::bias_gelu(y.data<T>(), b.data<T>(), y.data<T>(), rows, columns, false, false,
                                       current_stream(y.device()).handle));
    });
    return;
  }
  dispatch_float(y.dtype(), [&]<class T>() {
    T* p = y.data<T>();
    const T* bias = b.data<T>();
#pragma omp parallel for if (rows * columns > 16384)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) p[r * columns + c] += bias[c];
  });
}

/// One batched product over the groups, which are interleaved in memory.
struct GroupedLinear {
  struct Attrs {};
  static constexpr OpInfo info{.name = "grouped_linear",
                               .contract = "x: ... h i, w: h o i, b?: h o -> ... h o",
                               .bound = Bound::compute,
                               .hint = "weights are stored (group, out, in)"};

  struct Sizes {
    int64_t groups, in, out, rows;
    Sizes(const Shape& x, const Shape& w)
        : groups(w[0]), in(w[2]), out(w[1]), rows(groups * in > 0 ? x.numel() / (groups * in) : 0) {}
  };

  static Outs forward(Ctx& c, In in, const Attrs&) {
    const Tensor &x = in[0], &w = in[1];
    Sizes s(x.shape(), w.shape());
    Tensor y = empty(x.shape().with(-1, s.out), options_of(x));
    if (s.in == 0) y.zero_();
    Product p{.device = x.device(),
              .dtype_ab = x.dtype(),
              .dtype_d = x.dtype(),
              .trans_b = true,
              .m = s.rows,
              .n = s.out,
              .k = s.in,
              .lda = s.groups * s.in,
              .ldd = s.groups * s.out,
              .batch = s.groups,
              .stride_a = s.in,
              .stride_b = s.out * s.in,
              .stride_d = s.out,
              .bias = in[2] ? in[2].data_ptr() : nullptr};
    if (in[2] && !product_fuses(p, x.data_ptr(), w.data_ptr(), y.data_ptr())) p.bias = nullptr;
    matrix_product(p, x.data_ptr(), w.data_ptr(), y.data_ptr());
    if (in[2] && p.bias == nullptr) add_bias(y, in[2]);
    c.save({c.needs(1) ? x : Tensor(), c.needs(0) ? w : Tensor()});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    const Tensor& g = gy[0];
    Tensor x = c.saved(0), w = c.saved(1);
    Sizes s(c.shape_of(0), c.shape_of(1));
    Grads grads(3);
    if (c.needs(0)) {  // gx = gy w
      grads[0] = empty(c.shape_of(0), options_of(g));
      if (s.out == 0) grads[0].zero_();
      matrix_product({.device = g.device(),
                      .dtype_ab = g.dtype(),
                      .dtype_d = g.dtype(),
                      .m = s.rows,
                      .n = s.in,
                      .k = s.out,
                      .lda = s.groups * s.out,
                      .ldd = s.groups * s.in,
                      .batch = s.groups,
                      .stride_a = s.out,
                      .stride_b = s.out * s.in,
                      .stride_d = s.in},
                     g.data_ptr(), w.data_ptr(), grads[0].data_ptr());
    }
    if (c.needs(1)) {  // gw = gy^T x
      DType dtype = c.grad_dtype_of(1);
      grads[1] = empty(c.shape_of(1), {dtype, g.device()});
      if (s.rows == 0)
        grads[1].zero_();
      else
        matrix_product({.device = g.device(),
                        .dtype_ab = g.dtype(),
                        .dtype_d = dtype,
                        .trans_a = true,
                        .m = s.out,
                        .n = s.in,
                        .k = s.rows,
                        .lda = s.groups * s.out,
                        .ldb = s.groups * s.in,
                        .batch = s.groups,
                        .stride_a = s.out,
                        .stride_b = s.in,
                        .stride_d = s.out * s.in},
                       g.data_ptr(), x.data_ptr(), grads[1].data_ptr());
    }
    if (c.needs(2)) grads[2] = raw::sum_to_shape(g, c.shape_of(2), c.grad_dtype_of(2));
    return grads;
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    Sizes s(in[0], in[1]);
    double out = double(s.rows) * double(s.groups) * double(s.out);
    return {2 * out * double(s.in), bytes_of(in, dtype) + out * double(size_of(dtype))};
  }
};

}  // namespace

Tensor grouped_linear(const Tensor& x, const Tensor& w, const Tensor& b) {
  return apply<GroupedLinear>({x, w, b}, {})[0];
}

OCCAM_REGISTER(grouped_linear, GroupedLinear);

}  // namespace occam
