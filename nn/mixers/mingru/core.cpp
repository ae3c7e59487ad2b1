#include "nn/mixers/mingru/core.h"

#include "nn/mixers/skeleton.h"
#include "nn/plan.h"
#include "ops/linear/op.h"
#include "ops/ragged.h"
#include "ops/view/op.h"

namespace occam {

namespace {

/// `rnn` with gates of every head's own channels.
class HeadGates : public RaggedCore {
 public:
  HeadGates(const MixerShape& s, int64_t hidden, GatedCell cell)
      : cell_(cell),
        hidden_(hidden),
        weight_(param("weight", {2, s.heads, gates_of(cell) * hidden, s.head_dim()},
                      init::fan_in_uniform(s.head_dim()))),
        bias_(param("bias", {2, s.heads, gates_of(cell) * hidden}, init::fan_in_uniform(s.head_dim()))) {}
  const char* kind() const override { return "HeadGates"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    plan.add_macs(x[0] * x[1] * weight_.numel());
    return x.with(-1, 2 * hidden_);
  }
  Tensor projected(const Tensor& x, const Tensor& project, const Tensor& project_bias,
                   const Sequences& rows) {
    return as_image(head_gated_scan_project(as_rows(x, rows), weight_.value(), bias_.value(), project,
                                            project_bias, cell_, rows),
                    rows);
  }

 protected:
  Tensor forward(const Tensor& x, const Sequences& rows) override {
    return as_image(head_gated_scan(as_rows(x, rows), weight_.value(), bias_.value(), cell_, rows), rows);
  }

 private:
  GatedCell cell_;
  int64_t hidden_;
  Parameter &weight_, &bias_;
};

/// `rnn` with gates of all channels: rows of the weights by (head, direction, gate, state).
class DenseGates : public RaggedCore {
 public:
  DenseGates(const MixerShape& s, int64_t hidden, GatedCell cell)
      : cell_(cell),
        heads_(s.heads),
        hidden_(hidden),
        weight_(param("weight", {s.heads * 2 * gates_of(cell) * hidden, s.dim}, init::fan_in_uniform(s.dim))),
        bias_(param("bias", {s.heads * 2 * gates_of(cell) * hidden}, init::fan_in_uniform(s.dim))) {}
  const char* kind() const override { return "DenseGates"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    plan.add_macs(x[0] * x[1] * weight_.numel());
    return x.with(-1, 2 * hidden_);
  }

 protected:
  Tensor forward(const Tensor& x, const Sequences& rows) override {
    const int64_t b = x.size(0), t = x.size(1);
    Tensor gates = linear(reshape(x, {b, t, x.size(2) * x.size(3)}), weight_.value(), bias_.value());
    gates = reshape(gates, {b, t, heads_, 2, gates_of(cell_) * hidden_});
    return as_image(gated_scan(as_rows(gates, rows), cell_, rows), rows);
  }

 private:
  GatedCell cell_;
  int64_t heads_, hidden_;
  Parameter &weight_, &bias_;
};

}  // namespace

std::unique_ptr<TokenMixer> make_min_rnn(const char* kind, GatedCell cell, const MixerShape& s,
                                         const MinRnnOptions& options) {
  const int64_t k = options.hidden_of(s);
  MixerCore core{"rnn", nullptr, 2 * k};
  if (options.is_dense()) {
    core.module = std::make_unique<DenseGates>(s, k, cell);
  } else {
    auto gates = std::make_unique<HeadGates>(s, k, cell);
    core.projected = [rnn = gates.get()](const Tensor& u, const Tensor& weight, const Tensor& bias,
                                         const Sequences& rows) {
      return rnn->projected(u, weight, bias, rows);
    };
    core.module = std::move(gates);
  }
  return std::make_unique<SkeletonMixer>(kind, s, std::move(core), options.scan);
}

MixerLedger min_rnn_ledger(GatedCell cell, const MixerShape& s, int64_t t, const MinRnnOptions& options) {
  const int64_t k = options.hidden_of(s), rows = 2 * s.heads * gates_of(cell) * k;
  const int64_t weights = rows * (options.is_dense() ? s.dim : s.head_dim());
  return skeleton_ledger(s, t, {weights + rows, t * weights, tree_depth(t)}, 2 * k);
}

}  // namespace occam
