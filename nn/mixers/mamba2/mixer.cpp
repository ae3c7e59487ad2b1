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
  int64_t state = 128, conv = 0;
  std::string variant = "two";
  ScanOptions scan;

  template <class V>
  void visit(V& v) {
    v("state", state, "rows of each head's state in each direction", Range{1, knob.last});
    v("conv", conv, "taps of the convolution before the scan; 0 = 4, or 7 of hydra", Range{0, 8});
    v("variant", variant, "two layers, one a direction; or hydra: one, whose matrix is quasiseparable",
      Choices{"two", "hydra"});
    scan.visit(v);
  }
  bool hydra() const { return variant == "hydra"; }
  int64_t taps() const { return conv > 0 ? conv : hydra() ? 7 : 4; }
};

LinearOptions bare_linear(int64_t fan_in) { return {.bias = false, .weight = init::fan_in_uniform(fan_in)}; }

/// [b,t,r heads x] -> [b,t,r,heads,x].
Tensor by_head(const Tensor& x, int64_t directions, int64_t heads) {
  return reshape(x, {x.size(0), x.size(1), directions, heads, x.size(-1) * x.size(2) / directions / heads});
}

/// `ssm`: two state space layers, one a direction, with all heads of each.
class StateSpace : public RaggedCore {
 public:
  StateSpace(const MixerShape& s, const StateOptions& o)
      : shape_(s),
        state_(o.state),
        in_proj_(s.dim, 2 * wide(), bare_linear(s.dim)),
        dt_proj_(s.dim, 2 * s.heads, bare_linear(s.dim)),
        conv_weight_(param("conv_weight", {2, mixed(), o.taps()}, init::fan_in_uniform(o.taps()))),
        conv_bias_(param("conv_bias", {2, mixed()}, init::fan_in_uniform(o.taps()))),
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
    SoftplusGates gates =
        softplus_gates(reshape(dt_proj_(tokens), {b, t, 2, h}), dt_bias_.value(), a_log_.value());
    Tensor y = scan_of(by_head(xbc[2], 2, 1), by_head(xbc[1], 2, 1), by_head(xbc[0], 2, h), gates.log_decay,
                       {.scale = gates.scale, .skip = skip_.value()}, rows);
    return reshape(rms_norm(y, norm_weight_.value(), z), {b, t, h, 2 * w});
  }

 private:
  int64_t mixed() const { return shape_.dim + 2 * state_; }  // x, B, C
  int64_t wide() const { return shape_.dim + mixed(); }      // z before them

  MixerShape shape_;
  int64_t state_;
  Linear in_proj_, dt_proj_;
  Parameter &conv_weight_, &conv_bias_, &dt_bias_, &a_log_, &skip_, &norm_weight_;
};

/// `ssm` of hydra: one layer whose matrix has a part below and one above the diagonal, each with its own B, C
/// and steps, and a free diagonal; x, z and the convolution are of both.
class Quasiseparable : public RaggedCore {
 public:
  Quasiseparable(const MixerShape& s, const StateOptions& o)
      : shape_(s),
        state_(o.state),
        in_proj_(s.dim, s.dim + mixed(), bare_linear(s.dim)),
        dt_proj_(s.dim, 2 * s.heads, bare_linear(s.dim)),
        diagonal_(s.dim, s.heads, {.weight = init::fan_in_uniform(s.dim), .bias_init = init::ones()}),
        conv_weight_(param("conv_weight", {1, mixed(), o.taps()}, init::fan_in_uniform(o.taps()))),
        conv_bias_(param("conv_bias", {1, mixed()}, init::fan_in_uniform(o.taps()))),
        dt_bias_(param("dt_bias", {2, s.heads}, init::softplus_step())),
        a_log_(param("a_log", {2, s.heads}, init::log_rate())),
        norm_weight_(param("norm_weight", {1, s.heads, s.head_dim()}, init::ones())) {
    sub("in_proj", in_proj_);
    sub("dt_proj", dt_proj_);
    sub("diagonal", diagonal_);
  }
  const char* kind() const override { return "Quasiseparable"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    const Shape tokens{x[0], x[1], shape_.dim};
    plan.run(in_proj_, tokens);
    plan.run(dt_proj_, tokens);
    plan.run(diagonal_, tokens);
    plan.add_macs(x[0] * x[1] * (conv_weight_.numel() + scan_macs(shape_, 1, state_)));
    return x;
  }

 protected:
  /// x [b,t,h,w] -> [b,t,h,w].
  Tensor forward(const Tensor& input, const Sequences& rows) override {
    const int64_t b = input.size(0), t = input.size(1), d = shape_.dim, h = shape_.heads,
                  w = shape_.head_dim();
    Tensor tokens = reshape(input, {b, t, d});
    const auto zxbc = split(reshape(in_proj_(tokens), {b, t, 1, d + mixed()}), 3, {d, d, 4 * state_});
    // x by itself, so that it lies packed for the product that makes the diagonal.
    const auto weights = split(conv_weight_.value(), 1, {d, 4 * state_}),
               biases = split(conv_bias_.value(), 1, {d, 4 * state_});
    auto convolved = [&](size_t part) {
      return as_image(short_conv(as_rows(zxbc[1 + part], rows), weights[part], biases[part], rows), rows);
    };
    const Tensor x = convolved(0);
    const auto bc = split(reshape(convolved(1), {b, t, 2, 2 * state_}), 3, {state_, state_});
    SoftplusGates gates =
        softplus_gates(reshape(dt_proj_(tokens), {b, t, 2, h}), dt_bias_.value(), a_log_.value());
    Tensor y =
        scan_of(by_head(bc[1], 2, 1), by_head(bc[0], 2, 1), by_head(x, 1, h), gates.log_decay,
                {.scale = gates.scale, .merge = true, .diagonal = diagonal_(reshape(x, {b, t, d}))}, rows);
    return reshape(rms_norm(y, norm_weight_.value(), reshape(zxbc[0], {b, t, 1, h, w})), {b, t, h, w});
  }

 private:
  int64_t mixed() const { return shape_.dim + 4 * state_; }  // x, and B, C of each direction

  MixerShape shape_;
  int64_t state_;
  Linear in_proj_, dt_proj_, diagonal_;
  Parameter &conv_weight_, &conv_bias_, &dt_bias_, &a_log_, &norm_weight_;
};

struct Mamba2 {
  using Options = StateOptions;
  static constexpr auto about = "a selective state space with matrix states in both directions";
  static constexpr SkeletonParts parts{.pre = false, .head_bias = false};
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    MixerCore core{"ssm", nullptr, width(s, o)};
    if (o.hydra())
      core.module = std::make_unique<Quasiseparable>(s, o);
    else
      core.module = std::make_unique<StateSpace>(s, o);
    return std::make_unique<SkeletonMixer>("Mamba2", s, std::move(core), o.scan, parts);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t d = s.dim, n = o.state, h = s.heads, k = o.taps(), scan = scan_macs(s, t, n);
    MixerLedger core{0, 0, scan_depth(t)};
    if (o.hydra()) {
      const int64_t mixed = d + 4 * n, in = d * (d + mixed + 3 * h);
      core.params = in + mixed * (k + 1) + 5 * h + d;
      core.macs = t * (in + mixed * k) + scan;
    } else {
      const int64_t mixed = d + 2 * n, in = d * (d + mixed + h);
      core.params = 2 * (in + mixed * (k + 1) + 3 * h + d);
      core.macs = 2 * t * (in + mixed * k) + scan;
    }
    return skeleton_ledger(s, t, core, width(s, o), parts);
  }

 private:
  static int64_t width(const MixerShape& s, const Options& o) { return (o.hydra() ? 1 : 2) * s.head_dim(); }
};

}  // namespace

OCCAM_REGISTER_MIXER(mamba2, Mamba2);

}  // namespace occam
