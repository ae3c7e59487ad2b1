#include "ops/fused_linear/op.h"

#include <algorithm>

#include "autograd/node.h"
#include "core/grad_mode.h"
#include "ops/elementwise/op.h"
#include "ops/layer_norm/op.h"
#include "ops/linear/product.h"
#include "ops/op.h"
#if OCCAM_CUDA
#include "ops/linear/kernel.h"
#endif

namespace occam {
namespace {

Tensor one_by_one(const Tensor& x, const Tensor& w, const Tensor& b, const LinearSurroundings& s) {
  Tensor y = linear(s.norm_weight ? layer_norm(x, s.norm_weight, s.norm_bias, s.eps) : x, w, b, s.activation);
  return s.residual ? add(s.residual, y) : y;
}

struct FusedLinear {
  struct Attrs {
    double eps = 1e-5;
    LinearActivation activation = LinearActivation::none;
  };
  static constexpr OpInfo info{
      .name = "fused_linear",
      .contract = "x: ... i, w: o i, b?: o, norm_weight?: i, norm_bias?: i, residual?: ... o -> ... o",
      .bound = Bound::compute,
      .hint = "weights are stored (out, in)"};
  static constexpr NonDifferentiable kNoGradient{
      "it is for inference: where gradients are recorded its parts are called one by one"};

  static Outs forward(Ctx&, In in, const Attrs& a) {
    Tensor y = raw::few_rows_product(in[0], in[1], in[2],
                                     {.norm_weight = in[3],
                                      .norm_bias = in[4],
                                      .residual = in[5],
                                      .eps = a.eps,
                                      .gelu = a.activation == LinearActivation::gelu});
    if (!y) y = one_by_one(in[0], in[1], in[2], {in[3], in[4], a.eps, a.activation, in[5]});
    return {y};
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    const double rows = double(in[0].numel()) / double(std::max<int64_t>(in[1][1], 1)),
                 out = rows * double(in[1][0]);
    return {2 * out * double(in[1][1]), bytes_of(in, dtype) + out * double(size_of(dtype))};
  }
};

}  // namespace

Tensor fused_linear(const Tensor& x, const Tensor& w, const Tensor& b, const LinearSurroundings& s) {
  OCCAM_CHECK(bool(s.norm_weight) == bool(s.norm_bias), ErrorKind::usage,
              "fused_linear: a norm has a weight and a bias, or there is none");
  bool recording = false;
  for (const Tensor& t : {x, w, b, s.norm_weight, s.norm_bias, s.residual})
    recording |= grad_enabled() && t && requires_grad(t);
  if (recording) return one_by_one(x, w, b, s);
  return apply<FusedLinear>({x, w, b, s.norm_weight, s.norm_bias, s.residual}, {s.eps, s.activation})[0];
}

bool has_few_rows([[maybe_unused]] const Tensor& x) {
#if OCCAM_CUDA
  if (x.is_cuda() && x.dtype() == DType::bf16 && x.rank() > 0 && x.numel() > 0)
    return kernels::rows_product_pays(x.numel() / x.size(-1), x.size(-1));
#endif
  return false;
}

OCCAM_REGISTER(fused_linear, FusedLinear);

}  // namespace occam
