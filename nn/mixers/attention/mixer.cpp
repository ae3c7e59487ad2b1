#include "nn/mixers/attention/attention.h"
#include "nn/plan.h"
#include "ops/attention/op.h"
#include "ops/view/op.h"

namespace occam {

Attention::Attention(const MixerShape& shape)
    : TokenMixer(shape), qkv_(shape.dim, 3 * shape.dim), proj_(shape.dim, shape.dim) {
  sub("qkv", qkv_);
  sub("proj", proj_);
}

Tensor Attention::attend(const Tensor& x, const Tensor& projected) {
  const int64_t b = x.size(0), t = x.size(1);
  const MixerShape& s = mixer_shape();
  Tensor qkv = reshape(projected, {b, t, 3, s.heads, s.head_dim()});
  if (on_qkv_) on_qkv_(qkv);
  return reshape(attention(qkv), {b, t, s.dim});
}

Shape Attention::plan(const Shape& x, Plan& plan) const {
  plan.run(qkv_, x);
  plan.add_macs(x[0] * 2 * x[1] * x[1] * mixer_shape().dim);  // q k^T and its product with v
  return plan.run(proj_, x);
}

namespace {

struct Softmax : AttentionMixer {
  static constexpr auto about = "softmax attention (qkv, proj)";
};

}  // namespace

OCCAM_REGISTER_MIXER(attention, Softmax);

}  // namespace occam
