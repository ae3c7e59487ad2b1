#include "ops/linear/op.h"

#include <algorithm>

#include "ops/linear/product.h"
#include "ops/op.h"

namespace occam {
namespace {

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
    raw::GeluProduct out;
    if (a.activation == LinearActivation::gelu)
      out = raw::times_weight_gelu(x, w, b, c.recording());
    else
      out.y = raw::times_weight(x, w, b);
    c.save({c.needs(1) || c.needs(2) ? x : Tensor(), c.needs(0) ? w : Tensor(), out.z});
    return {out.y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor x = c.saved(0), w = c.saved(1), z = c.saved(2), g = z ? raw::through_gelu(z, gy[0]) : gy[0];
    raw::ParameterGradients p =
        raw::parameter_gradients(g, x, {c.needs(1), c.needs(2), c.grad_dtype_of(1), c.grad_dtype_of(2)});
    return {c.needs(0) ? raw::input_gradient(g, w, c.shape_of(0)) : Tensor(), p.w, p.b};
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
