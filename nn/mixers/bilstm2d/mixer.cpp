#include "core/check.h"
#include "nn/mixers/head_rnn.h"
#include "nn/mixers/skeleton.h"
#include "nn/plan.h"
#include "ops/concat/op.h"
#include "ops/grid_lines/op.h"
#include "ops/grouped_linear/op.h"
#include "ops/view/op.h"

namespace occam {

namespace {

PatchGrid grid_of(const MixerShape& s) { return {s.prefix, s.grid_h, s.grid_w}; }

/// [b, t, h, w] -> [b, t, h, 4k]: the states along the token's row, then those along its column. The LSTMs of
/// rows and of columns are heads side by side, so that one op has all lines of a square grid.
class GridLstm : public HeadLstm {
 public:
  GridLstm(const MixerShape& s, int64_t hidden)
      : HeadLstm(2 * s.heads, s.head_dim(), hidden), grid_(grid_of(s)), hidden_(hidden) {}
  const char* kind() const override { return "GridLstm"; }
  /// Of all lines of an image.
  static int64_t steps(const PatchGrid& g) {
    return g.rows * (g.prefix + g.columns) + g.columns * (g.prefix + g.rows);
  }
  Shape plan(const Shape& x, Plan& plan) const override {
    check(x[1]);
    plan.add_macs(x[0] * steps(grid_) * macs(x[2], x[3], hidden_));
    return x.with(-1, 4 * hidden_);
  }
  std::string why_not_ragged() const override { return "its core is made for whole images"; }
  /// forward() and the product behind it.
  Tensor projected(const Tensor& x, const Tensor& weight, const Tensor& bias) {
    if (grid_.rows != grid_.columns) return grouped_linear(forward(x, {}), weight, bias);
    check(x.size(1));
    return grid_project(states(x, Along::both, 0, 2), grid_, Along::both, weight, bias);
  }

 protected:
  Tensor forward(const Tensor& x, const Sequences&) override {
    check(x.size(1));
    if (grid_.rows == grid_.columns) return along(x, Along::both, 0, 2);
    return concat({along(x, Along::rows, 0, 1), along(x, Along::columns, x.size(2), 1)}, 3);
  }

 private:
  void check(int64_t tokens) const {
    OCCAM_CHECK(tokens == grid_.tokens(), ErrorKind::shape,
                "bilstm2d: {} tokens, but the model has {} and a grid of {} x {} patches", tokens,
                grid_.tokens(), grid_.rows, grid_.columns);
  }
  /// States by the heads from `first` on along the lines of `sets`: [b n, l, sets, h, 2k].
  Tensor states(const Tensor& x, Along which, int64_t first, int64_t sets) {
    const int64_t b = x.size(0), t = x.size(1), h = x.size(2), w = x.size(3);
    const Tensor lines = grid_lines(reshape(x, {b, t, h * w}), grid_, which);
    const int64_t n = lines.size(0), l = lines.size(1);
    return reshape(run_heads(reshape(lines, {n, l, sets * h, w}), first, sets * h),
                   {n, l, sets, h, 2 * hidden_});
  }
  /// [b, t, h, 2k] for each of `sets`, side by side.
  Tensor along(const Tensor& x, Along which, int64_t first, int64_t sets) {
    return reshape(grid_tokens(states(x, which, first, sets), grid_, which),
                   {x.size(0), x.size(1), x.size(2), sets * 2 * hidden_});
  }

  PatchGrid grid_;
  int64_t hidden_;
};

struct BiLstm2d {
  using Options = HiddenOptions;
  static constexpr auto about = "bidirectional LSTMs a head along rows and along columns";
  static constexpr bool needs_grid = true;
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    const int64_t k = o.hidden_of(s);
    auto rnn = std::make_unique<GridLstm>(s, k);
    auto projected = [rnn = rnn.get()](const Tensor& u, const Tensor& weight, const Tensor& bias,
                                       const Sequences&) { return rnn->projected(u, weight, bias); };
    return std::make_unique<SkeletonMixer>("BiLstm2d", s,
                                           MixerCore{"rnn", std::move(rnn), 4 * k, std::move(projected)});
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t w = s.head_dim(), k = o.hidden_of(s);
    return skeleton_ledger(
        s, t,
        {HeadLstm::params(2 * s.heads, w, k), GridLstm::steps(grid_of(s)) * HeadLstm::macs(s.heads, w, k),
         s.prefix + std::max(s.grid_h, s.grid_w)},
        4 * k);
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(bilstm2d, BiLstm2d);

}  // namespace occam
