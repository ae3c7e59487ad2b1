#include <cmath>

#include "nn/mixers/skeleton.h"
#include "nn/plan.h"
#include "ops/activation/op.h"
#include "ops/elementwise/op.h"
#include "ops/grouped_linear/op.h"
#include "ops/ragged.h"
#include "ops/selective_scan/op.h"
#include "ops/short_conv/op.h"
#include "ops/slice/op.h"
#include "ops/view/op.h"

namespace occam {

namespace {

struct SelectiveOptions {
  static constexpr MixerKnob knob{"state", 4, 4, 64};
  int64_t state = 16, conv = 4, dt_rank = 0;
  bool cross_scan = false;
  ScanOptions scan;

  template <class V>
  void visit(V& v) {
    v("state", state, "states of each channel in each direction", Range{1, knob.last});
    v("conv", conv, "taps of the convolution before the scan", Range{1, 8});
    v("dt_rank", dt_rank, "width that the step sizes are computed through; 0 = a sixteenth of the channels",
      Range{0, 65536});
    v("cross_scan", cross_scan, "scan the columns of the patch grid beside its rows, four directions in all");
    scan.visit(v);
  }
  void check() const {
    OCCAM_CHECK(!cross_scan || scan.scan == "row", ErrorKind::usage,
                "cross_scan has rows and columns, so `scan` stays row");
  }
  int64_t rank_of(const MixerShape& s) const { return dt_rank > 0 ? dt_rank : (s.dim + 15) / 16; }
};

/// A = -1, -2, ... -n.
double rate_log(int64_t n) { return std::log(double(1 + n)); }

/// Both directions along one order of the tokens: [b,t,c] -> [b,t,h,2w].
class DirectionPair : public RaggedCore {
 public:
  DirectionPair(const MixerShape& s, const SelectiveOptions& o)
      : heads_(s.heads),
        state_(o.state),
        rank_(o.rank_of(s)),
        conv_weight_(param("conv_weight", {2, s.dim, o.conv}, init::fan_in_uniform(o.conv))),
        conv_bias_(param("conv_bias", {2, s.dim}, init::fan_in_uniform(o.conv))),
        x_proj_(param("x_proj", {2, rank_ + 2 * state_, s.dim}, init::fan_in_uniform(s.dim))),
        dt_proj_(param("dt_proj", {2, s.dim, rank_}, init::fan_in_uniform(rank_))),
        dt_bias_(param("dt_bias", {2, s.dim}, init::softplus_step())),
        a_log_(param("a_log", {2, s.dim, state_}, init::by_place(rate_log))),
        skip_(param("skip", {2, s.dim}, init::ones())) {}
  const char* kind() const override { return "DirectionPair"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    plan.add_macs(x[0] * x[1] *
                  (conv_weight_.numel() + x_proj_.numel() + dt_proj_.numel() + 2 * a_log_.numel()));
    return {x[0], x[1], heads_, 2 * x[2] / heads_};
  }

 protected:
  Tensor forward(const Tensor& x, const Sequences& rows) override {
    const int64_t b = x.size(0), t = x.size(1), c = x.size(2);
    const Tensor both = expand(reshape(x, {b, t, 1, c}), {b, t, 2, c});
    Tensor u =
        as_image(short_conv(as_rows(both, rows), conv_weight_.value(), conv_bias_.value(), rows), rows);
    Tensor selected = grouped_linear(u, x_proj_.value(), Tensor());
    Tensor delta = grouped_linear(slice(selected, 3, 0, rank_), dt_proj_.value(), dt_bias_.value());
    auto part = [&](int64_t first) { return as_rows(slice(selected, 3, first, state_), rows); };
    return as_image(selective_scan(as_rows(u, rows), as_rows(delta, rows), a_log_.value(), part(rank_),
                                   part(rank_ + state_), skip_.value(), heads_, rows),
                    rows);
  }

 private:
  int64_t heads_, state_, rank_;
  Parameter &conv_weight_, &conv_bias_, &x_proj_, &dt_proj_, &dt_bias_, &a_log_, &skip_;
};

/// `ssm`: the scans of one order or two, gated.
class SelectiveStates : public RaggedCore {
 public:
  SelectiveStates(const MixerShape& s, const SelectiveOptions& o)
      : shape_(s),
        in_proj_(s.dim, 2 * s.dim, {.bias = false, .weight = init::fan_in_uniform(s.dim)}),
        scan_(s, o),
        columns_(o.cross_scan ? std::make_unique<DirectionPair>(s, o) : nullptr),
        row_order_(s, o.cross_scan ? o.scan : ScanOptions{}),
        column_order_(s, o.cross_scan ? ScanOptions{"column", o.scan.cls} : ScanOptions{}) {
    sub("in_proj", in_proj_);
    sub("scan", scan_);
    if (columns_) sub("columns", *columns_);
  }
  const char* kind() const override { return "SelectiveStates"; }
  std::string why_not_ragged() const override {
    return columns_ ? "cross_scan has the columns of a whole patch grid" : "";
  }
  Shape plan(const Shape& x, Plan& plan) const override {
    const Shape tokens{x[0], x[1], shape_.dim};
    plan.run(in_proj_, tokens);
    plan.run(scan_, tokens);
    if (columns_) plan.run(*columns_, tokens);
    return x.with(-1, 2 * shape_.head_dim());
  }

 protected:
  /// x [b,t,h,w] -> [b,t,h,2w].
  Tensor forward(const Tensor& x, const Sequences& rows) override {
    const int64_t b = x.size(0), t = x.size(1), c = shape_.dim, h = shape_.heads, w = shape_.head_dim();
    Tensor both = in_proj_(reshape(x, {b, t, c}));
    Tensor tokens = slice(both, 2, 0, c), gate = silu(slice(both, 2, c, c));
    Tensor y = along(scan_, row_order_, tokens, rows);
    if (columns_) y = y + along(*columns_, column_order_, tokens, rows);
    return reshape(reshape(y, {b, t, h, 2, w}) * reshape(gate, {b, t, h, 1, w}), {b, t, h, 2 * w});
  }

 private:
  Tensor along(DirectionPair& pair, TokenOrder& order, const Tensor& tokens, const Sequences& rows) {
    Tensor y = pair(order.arrange(tokens), rows);
    return order.restore(reshape(y, {y.size(0), y.size(1), 2 * shape_.dim}));
  }

  MixerShape shape_;
  Linear in_proj_;
  DirectionPair scan_;
  std::unique_ptr<DirectionPair> columns_;
  TokenOrder row_order_, column_order_;
};

struct Mamba {
  using Options = SelectiveOptions;
  static constexpr auto about = "selective states of every channel in both directions, or in four";
  static constexpr SkeletonParts parts{.pre = false, .head_bias = false};
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return std::make_unique<SkeletonMixer>(
        "Mamba", s, MixerCore{"ssm", std::make_unique<SelectiveStates>(s, o), 2 * s.head_dim()},
        o.cross_scan ? ScanOptions{} : o.scan, parts);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t c = s.dim, n = o.state, r = o.rank_of(s), orders = o.cross_scan ? 2 : 1;
    const int64_t products = o.conv + r + 2 * n + r;  // a channel and direction: convolution, x_proj, dt_proj
    const MixerLedger core{2 * c * c + orders * 2 * c * (products + n + 3),
                           t * (2 * c * c + orders * 2 * c * (products + 2 * n)), tree_depth(t)};
    return skeleton_ledger(s, t, core, 2 * s.head_dim(), parts);
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(mamba, Mamba);

}  // namespace occam
