#include "ops/mlp/op.h"

#include <algorithm>

#include "ops/linear/product.h"
#include "ops/op.h"

namespace occam {
namespace {

struct Mlp {
  struct Attrs {
    bool recompute = false;
  };
  static constexpr OpInfo info{.name = "mlp",
                               .contract = "x: ... i, w1: h i, b1?: h, w2: o h, b2?: o -> ... o",
                               .bound = Bound::compute,
                               .hint = "weights are stored (out, in)"};

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    const Tensor &x = in[0], &w1 = in[1], &w2 = in[3];
    const bool hidden = c.needs(0) || c.needs(1) || c.needs(2);  // does a gradient go through the GELU?
    raw::GeluProduct a = raw::times_weight_gelu(x, w1, in[2], c.recording() && hidden);
    // Recomputed or not, the product is the one that gives z as well: another one might round otherwise.
    if (attrs.recompute && hidden)
      c.save({x, w1, w2, {}, {}, in[2]});
    else
      c.save({c.needs(1) ? x : Tensor(), w1, w2, a.z, c.needs(3) || c.needs(4) ? a.y : Tensor(), {}});
    return {raw::times_weight(a.y, w2, in[4])};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor x = c.saved(0), w1 = c.saved(1), w2 = c.saved(2), z = c.saved(3), a = c.saved(4);
    if (c.attrs<Attrs>().recompute && (c.needs(0) || c.needs(1) || c.needs(2))) {
      raw::GeluProduct again = raw::times_weight_gelu(x, w1, c.saved(5), true);
      z = again.z, a = again.y;
    }
    const Tensor& g = gy[0];
    Grads grads(5);
    raw::ParameterGradients second =
        raw::parameter_gradients(g, a, {c.needs(3), c.needs(4), c.grad_dtype_of(3), c.grad_dtype_of(4)});
    grads[3] = second.w, grads[4] = second.b;
    if (!z) return grads;
    raw::GeluGradient gz = raw::input_gradient_gelu(g, w2, z, c.needs(2));
    grads[2] = gz.columns;
    grads[1] = raw::parameter_gradients(gz.z, x, {.w = c.needs(1), .w_dtype = c.grad_dtype_of(1)}).w;
    if (c.needs(0)) grads[0] = raw::input_gradient(gz.z, w1, c.shape_of(0));
    return grads;
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    double rows = double(in[0].numel()) / double(std::max<int64_t>(in[1][1], 1));
    double hidden = rows * double(in[1][0]), out = rows * double(in[3][0]);
    return {2 * hidden * double(in[1][1] + in[3][0]),
            bytes_of(in, dtype) + (2 * hidden + out) * double(size_of(dtype))};
  }
};

}  // namespace

Tensor mlp(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
           bool recompute) {
  return apply<Mlp>({x, w1, b1, w2, b2}, {recompute})[0];
}

OCCAM_REGISTER(mlp, Mlp);

}  // namespace occam
