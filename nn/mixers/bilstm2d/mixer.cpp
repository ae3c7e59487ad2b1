#include "core/check.h"
#include "nn/mixers/head_rnn.h"
#include "nn/mixers/skeleton.h"
#include "nn/plan.h"
#include "ops/concat/op.h"
#include "ops/reduce/op.h"
#include "ops/slice/op.h"
#include "ops/view/op.h"

namespace occam {

namespace {

/// [b, t, h, w] -> [b, t, h, 4k]: the states along the token's row, then those along its column.
class GridLstm : public Module {
 public:
  GridLstm(const MixerShape& s, int64_t hidden)
      : shape_(s), row_(s.heads, s.head_dim(), hidden), column_(s.heads, s.head_dim(), hidden) {
    sub("row", row_);
    sub("column", column_);
  }
  const char* kind() const override { return "GridLstm"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    const MixerShape& s = shape_;
    check(x[1]);
    const Shape out = plan.run(row_, {x[0] * s.grid_h, s.prefix + s.grid_w, x[2], x[3]});
    plan.run(column_, {x[0] * s.grid_w, s.prefix + s.grid_h, x[2], x[3]});
    return x.with(-1, 2 * out[3]);
  }

 protected:
  Tensor forward(const Tensor& x) override {
    const MixerShape& s = shape_;
    check(x.size(1));
    const int64_t b = x.size(0), c = s.dim;
    const Tensor tokens = reshape(x, {b, x.size(1), c}), prefix = slice(tokens, 1, 0, s.prefix);
    const Tensor patches =
        reshape(slice(tokens, 1, s.prefix, s.grid_h * s.grid_w), {b, s.grid_h, s.grid_w, c});
    const Tensor by_row = along(row_, prefix, patches),
                 by_column = along(column_, prefix, transpose(patches, 1, 2));
    return concat({joined(by_row, false), joined(by_column, true)}, 3);
  }

 private:
  void check(int64_t tokens) const {
    OCCAM_CHECK(tokens == shape_.tokens(), ErrorKind::shape,
                "bilstm2d: {} tokens, but the model has {} and a grid of {} x {} patches", tokens,
                shape_.tokens(), shape_.grid_h, shape_.grid_w);
  }
  /// Lines [b, n, l, c], each with the prefix tokens before it -> [b, n, prefix + l, h, 2k].
  Tensor along(HeadLstm& rnn, const Tensor& prefix, const Tensor& lines) {
    const int64_t b = lines.size(0), n = lines.size(1), p = shape_.prefix, l = p + lines.size(2);
    Tensor with = lines;
    if (p > 0)
      with = concat({expand(reshape(prefix, {b, 1, p, shape_.dim}), {b, n, p, shape_.dim}), lines}, 2);
    const Tensor y = rnn(reshape(with, {b * n, l, shape_.heads, shape_.head_dim()}));
    return reshape(y, {b, n, l, shape_.heads, y.size(3)});
  }
  /// Back to tokens [b, t, h, 2k]: a prefix token is the mean over the lines that it began.
  Tensor joined(const Tensor& y, bool columns) const {
    const int64_t b = y.size(0), p = shape_.prefix;
    Tensor patches = slice(y, 2, p, y.size(2) - p);
    if (columns) patches = transpose(patches, 1, 2);
    patches = reshape(patches, {b, shape_.grid_h * shape_.grid_w, y.size(3), y.size(4)});
    return p > 0 ? concat({mean(slice(y, 2, 0, p), {1}), patches}, 1) : patches;
  }

  MixerShape shape_;
  HeadLstm row_, column_;
};

struct BiLstm2d {
  using Options = HiddenOptions;
  static constexpr auto about = "bidirectional LSTMs a head along rows and along columns";
  static constexpr bool needs_grid = true;
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    const int64_t k = o.hidden_of(s);
    return std::make_unique<SkeletonMixer>("BiLstm2d", s,
                                           MixerCore{"rnn", std::make_unique<GridLstm>(s, k), 4 * k});
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t w = s.head_dim(), k = o.hidden_of(s);
    const int64_t steps = s.grid_h * (s.prefix + s.grid_w) + s.grid_w * (s.prefix + s.grid_h);
    return skeleton_ledger(s, t,
                           {2 * HeadLstm::params(s.heads, w, k), steps * HeadLstm::macs(s.heads, w, k),
                            s.prefix + std::max(s.grid_h, s.grid_w)},
                           4 * k);
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(bilstm2d, BiLstm2d);

}  // namespace occam
