#include <cmath>

#include "nn/mixers/matrix_core.h"
#include "nn/plan.h"
#include "ops/activation/op.h"
#include "ops/elementwise/op.h"
#include "ops/matrix_scan/op.h"
#include "ops/ragged.h"
#include "ops/scan_gates/op.h"
#include "ops/slice/op.h"
#include "ops/view/op.h"

namespace occam {

namespace {

/// New gate biases [2 gates, 2 directions, h]: input gates 0, forget gates from 3 to 6 over the heads.
void new_gate_bias(const Tensor& bias, uint64_t) {
  const int64_t heads = bias.size(2);
  float* p = bias.data<float>();
  for (int64_t i = 0; i < 2 * heads; ++i) {
    p[i] = 0;
    p[2 * heads + i] = heads > 1 ? 3 + 3 * float(i % heads) / float(heads - 1) : 3.0f;
  }
}

/// `cell`: matrix memories with exponential input gates, one for each head and direction.
class MatrixLstm : public RaggedCore {
 public:
  MatrixLstm(const MixerShape& s, int64_t n)
      : n_(n),
        macs_(scan_macs(s, 1, n)),
        qkv_(s.heads, s.head_dim(), 2 * n + s.head_dim(), false),
        gates_(s.heads, s.head_dim(), 4, false),
        output_(s.heads, s.head_dim(), 2 * s.head_dim()),
        gate_bias_(param("gate_bias", {2, 2, s.heads}, new_gate_bias)) {
    sub("qkv", qkv_);
    sub("gates", gates_);
    sub("output", output_);
  }
  const char* kind() const override { return "MatrixLstm"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    plan.run(qkv_, x);
    plan.run(gates_, x);
    plan.add_macs(x[0] * x[1] * macs_);
    return plan.run(output_, x);
  }

 protected:
  /// x [b,t,h,w] -> [b,t,h,2w].
  Tensor forward(const Tensor& x, const Sequences& rows) override {
    const int64_t b = x.size(0), t = x.size(1), h = x.size(2), w = x.size(3);
    auto [q, k, v] = split_qkv(qkv_(x), n_);
    // [b,t,h,4] -> [gate,b,t,direction,h], so that each gate lies packed for the ops that read it
    const Tensor gates = permute(reshape(gates_(x), {b, t, h, 2, 2}), {3, 0, 1, 4, 2}) +
                         reshape(gate_bias_.value(), {2, 1, 1, 2, h});
    auto gate = [&](int64_t which) {
      return as_rows(reshape(slice(gates, 0, which, 1), {b, t, 2, h}), rows);
    };
    const Tensor i = gate(0), f = gate(1);
    ExponentialGates g = exponential_gates(i, f, gate_maximum(i, f, rows), rows);
    for (Tensor* part : {&g.scale, &g.log_decay, &g.floor}) *part = as_image(*part, rows);
    // Keys over sqrt(n) divide num and den alike: as good as a floor times it, which is smaller.
    Tensor y = scan_of(for_both(q), for_both(k), for_both(v), g.log_decay,
                       {.scale = g.scale, .floor = g.floor * std::sqrt(double(n_))}, rows);
    return reshape(y, {b, t, h, 2 * w}) * sigmoid(output_(x));
  }

 private:
  int64_t n_, macs_;
  GroupedLinear qkv_, gates_, output_;
  Parameter& gate_bias_;
};

struct MLstm {
  using Options = KeyOptions;
  static constexpr auto about = "matrix memories with exponential gates in both directions";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return std::make_unique<SkeletonMixer>(
        "MLstm", s, MixerCore{"cell", std::make_unique<MatrixLstm>(s, o.key_of(s)), 2 * s.head_dim()},
        o.scan);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t n = o.key_of(s), w = s.head_dim();
    const int64_t weights = s.dim * (2 * n + w + 4 + 2 * w);
    return skeleton_ledger(
        s, t, {weights + 2 * s.dim + 4 * s.heads, t * weights + scan_macs(s, t, n), scan_depth(t)}, 2 * w);
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(mlstm, MLstm);

}  // namespace occam
