#include <cmath>

#include "nn/mixers/matrix_core.h"
#include "nn/plan.h"
#include "ops/activation/op.h"
#include "ops/elementwise/op.h"
#include "ops/matrix_scan/op.h"
#include "ops/scan_gates/op.h"
#include "ops/slice/op.h"
#include "ops/view/op.h"

namespace occam {

namespace {

struct FeatureOptions : KeyOptions {
  std::string feature = "elu", gate = "none";

  template <class V>
  void visit(V& v) {
    KeyOptions::visit(v);
    v("feature", feature, "of queries and keys: elu + 1, relu, or none: products as they are",
      Choices{"elu", "relu", "none"});
    v("gate", gate, "none, or a decay by distance that each token chooses for each head and direction",
      Choices{"none", "decay"});
  }
  /// Rows of weights that sum to less are left as they are. Signed weights may sum to anything.
  double floor() const { return feature == "none" ? 1 : 0.01; }
  bool gated() const { return gate == "decay"; }
};

/// `linear`: all pairs of tokens by products of features.
class FeatureProducts : public RaggedCore {
 public:
  FeatureProducts(const MixerShape& s, const FeatureOptions& o)
      : n_(o.key_of(s)),
        macs_(scan_macs(s, 1, n_)),
        floor_(o.floor()),
        feature_(o.feature),
        qkv_(s.heads, s.head_dim(), 2 * n_ + s.head_dim(), false) {
    sub("qkv", qkv_);
    if (o.gated()) {
      gate_ = std::make_unique<GroupedLinear>(s.heads, s.head_dim(), 2, false);
      sub("gate", *gate_);
      gate_bias_ = &param("gate_bias", {2, s.heads}, init::softplus_step());
      a_log_ = &param("a_log", {2, s.heads}, init::log_rate());
    }
  }
  const char* kind() const override { return "FeatureProducts"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    plan.run(qkv_, x);
    if (gate_) plan.run(*gate_, x);
    plan.add_macs(x[0] * x[1] * macs_);
    return x;
  }

 protected:
  Tensor forward(const Tensor& x, const Sequences& rows) override {
    const int64_t b = x.size(0), t = x.size(1), h = x.size(2), w = x.size(3);
    const auto qk_v = split(qkv_(x), 3, {2 * n_, w});
    Tensor keys = qk_v[0];  // q beside k
    if (feature_ == "elu")
      keys = elu_plus_one(keys);
    else if (feature_ == "relu")
      keys = relu(keys);
    else
      keys = keys * std::pow(double(n_), -0.25);
    const TensorOptions wide{x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device()};
    const auto qk = split(keys, 3, {n_, n_});
    Tensor y = scan_of(for_both(qk[0]), for_both(qk[1]), for_both(qk_v[1]),
                       gate_ ? decay(x) : zeros({b, t, 2, h}, wide),
                       {.floor = full({b, t, 1, h}, floor_, wide), .merge = true}, rows);
    return reshape(y, {b, t, h, w});
  }

 private:
  Tensor decay(const Tensor& x) {
    Tensor by_direction = permute((*gate_)(x), {0, 1, 3, 2});  // [b,t,h,2] -> [b,t,2,h]
    return softplus_gates(by_direction, gate_bias_->value(), a_log_->value()).log_decay;
  }

  int64_t n_, macs_;
  double floor_;
  std::string feature_;
  GroupedLinear qkv_;
  std::unique_ptr<GroupedLinear> gate_;
  Parameter *gate_bias_ = nullptr, *a_log_ = nullptr;
};

struct LinearAttention {
  using Options = FeatureOptions;
  static constexpr auto about = "attention whose weights are products of features, with or without decay";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return std::make_unique<SkeletonMixer>(
        "LinearAttention", s, MixerCore{"linear", std::make_unique<FeatureProducts>(s, o), s.head_dim()},
        o.scan);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t n = o.key_of(s), gate = o.gated() ? 2 * s.dim : 0,
                  weights = s.dim * (2 * n + s.head_dim()) + gate;
    const int64_t params = weights + (o.gated() ? 4 * s.heads : 0);
    return skeleton_ledger(s, t, {params, t * weights + scan_macs(s, t, n), scan_depth(t)}, s.head_dim());
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(linear_attention, LinearAttention);

}  // namespace occam
