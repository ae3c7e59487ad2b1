#include "nn/mixers/matrix_core.h"
#include "nn/plan.h"
#include "ops/matrix_scan/op.h"
#include "ops/ragged.h"
#include "ops/rms_norm/op.h"
#include "ops/scan_gates/op.h"
#include "ops/short_conv/op.h"
#include "ops/slice/op.h"
#include "ops/view/op.h"

namespace occam {

namespace {

struct StateOptions {
  static constexpr MixerKnob knob{"state", 8, 8, 65536};
  int64_t state = 128, conv = 4;
  ScanOptions scan;

  template <class V>
  void visit(V& v) {
    v("state", state, "rows of each head's state in each direction", Range{1, knob.last});
    v("conv", conv, "taps of the convolution before the scan", Range{1, 8});
    scan.visit(v);
  }
};

/// `ssm`: two state space layers, one a direction, with all heads of each.
class StateSpace : public RaggedCore {
 public:
  StateSpace(const MixerShape& s, const StateOptions& o)
      : shape_(s),
        state_(o.state),
        in_proj_(s.dim, 2 * wide(), bare_linear(s.dim)),
        dt_proj_(s.dim, 2 * s.heads, bare_linear(s.dim)),
        conv_weight_(param("conv_weight", {2, mixed(), o.conv}, init::fan_in_uniform(o.conv))),
        conv_bias_(param("conv_bias", {2, mixed()}, init::fan_in_uniform(o.conv))),
        dt_bias_(param("dt_bias", {2, s.heads}, init::softplus_step())),
        a_log_(param("a_log", {2, s.heads}, init::log_rate())),
        skip_(param("skip", {2, s.heads}, init::ones())),
        norm_weight_(param("norm_weight", {2, s.heads, s.head_dim()}, init::ones())) {
    sub("in_proj", in_proj_);
    sub("dt_proj", dt_proj_);
  }
  const char* kind() const override { return "StateSpace"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    const int64_t rows = x[0] * x[1];
    plan.run(in_proj_, {x[0], x[1], shape_.dim});
    plan.run(dt_proj_, {x[0], x[1], shape_.dim});
    plan.add_macs(rows * (conv_weight_.numel() + 4 * state_ * shape_.dim));
    return x.with(-1, 2 * shape_.head_dim());
  }

 protected:
  /// x [b,t,h,w] -> [b,t,h,2w].
  Tensor forward(const Tensor& x, const Sequences& rows) override {
    const int64_t b = x.size(0), t = x.size(1), d = shape_.dim, h = shape_.heads, w = shape_.head_dim();
    Tensor tokens = reshape(x, {b, t, d});
    const auto zxbc = split(reshape(in_proj_(tokens), {b, t, 2, wide()}), 3, {d, mixed()});
    Tensor z = reshape(zxbc[0], {b, t, 2, h, w});
    const Tensor mixed =
        as_image(short_conv(as_rows(zxbc[1], rows), conv_weight_.value(), conv_bias_.value(), rows), rows);
    const auto xbc = split(mixed, 3, {d, state_, state_});
    auto by_head = [&](const Tensor& part, int64_t heads) {
      return reshape(part, {b, t, 2, heads, part.size(3) / heads});
    };
    SoftplusGates gates =
        softplus_gates(reshape(dt_proj_(tokens), {b, t, 2, h}), dt_bias_.value(), a_log_.value());
    Tensor y = scan_of(by_head(xbc[2], 1), by_head(xbc[1], 1), by_head(xbc[0], h), gates.log_decay,
                       {.scale = gates.scale, .skip = skip_.value()}, rows);
    return reshape(rms_norm(y, norm_weight_.value(), z), {b, t, h, 2 * w});
  }

 private:
  static LinearOptions bare_linear(int64_t fan_in) {
    return {.bias = false, .weight = init::fan_in_uniform(fan_in)};
  }
  int64_t mixed() const { return shape_.dim + 2 * state_; }  // x, B, C
  int64_t wide() const { return shape_.dim + mixed(); }      // z before them

  MixerShape shape_;
  int64_t state_;
  Linear in_proj_, dt_proj_;
  Parameter &conv_weight_, &conv_bias_, &dt_bias_, &a_log_, &skip_, &norm_weight_;
};

struct Mamba2 {
  using Options = StateOptions;
  static constexpr auto about = "a selective state space with matrix states in both directions";
  static constexpr SkeletonParts parts{.pre = false, .head_bias = false};
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return std::make_unique<SkeletonMixer>(
        "Mamba2", s, MixerCore{"ssm", std::make_unique<StateSpace>(s, o), 2 * s.head_dim()}, o.scan, parts);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t d = s.dim, mixed = d + 2 * o.state, in = d * (d + mixed + s.heads);
    const MixerLedger core{2 * (in + mixed * (o.conv + 1) + 3 * s.heads + d),
                           2 * t * (in + mixed * o.conv + 2 * d * o.state), scan_depth(t)};
    return skeleton_ledger(s, t, core, 2 * s.head_dim(), parts);
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(mamba2, Mamba2);

}  // namespace occam
