#include "nn/mixers/skeleton.h"
#include "nn/plan.h"
#include "ops/lstm/op.h"

namespace occam {

namespace {

struct Options {
  int64_t hidden = 0;
  ScanOptions scan;

  template <class V>
  void visit(V& v) {
    v("hidden", hidden, "width of each head's state in each direction; 0 = the head's width",
      Range{0, 65536});
    scan.visit(v);
  }
  int64_t hidden_of(const MixerShape& s) const { return hidden > 0 ? hidden : s.head_dim(); }
};

/// `rnn`: the recurrent weights of both directions and all heads.
class HeadLstm : public Module {
 public:
  HeadLstm(int64_t heads, int64_t in, int64_t hidden)
      : weight_ih_(param("weight_ih", {2, heads, 4 * hidden, in}, init::fan_in_uniform(hidden))),
        weight_hh_(param("weight_hh", {2, heads, 4 * hidden, hidden}, init::fan_in_uniform(hidden))),
        bias_ih_(param("bias_ih", {2, heads, 4 * hidden}, init::fan_in_uniform(hidden))),
        bias_hh_(param("bias_hh", {2, heads, 4 * hidden}, init::fan_in_uniform(hidden))) {}
  const char* kind() const override { return "HeadLstm"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    plan.add_macs(x[0] * x[1] * (weight_ih_.numel() + weight_hh_.numel()));
    return x.with(-1, 2 * weight_hh_.shape()[-1]);
  }

 protected:
  Tensor forward(const Tensor& x) override {
    return lstm(x, weight_ih_.value(), weight_hh_.value(), bias_ih_.value(), bias_hh_.value());
  }

 private:
  Parameter &weight_ih_, &weight_hh_, &bias_ih_, &bias_hh_;
};

std::unique_ptr<TokenMixer> make(const MixerShape& s, const MixerOptions& given) {
  const Options options = read_options<Options>("bilstm", given);
  const int64_t k = options.hidden_of(s);
  return std::make_unique<SkeletonMixer>(
      "BiLstm", s, MixerCore{"rnn", std::make_unique<HeadLstm>(s.heads, s.head_dim(), k), 2 * k},
      options.scan);
}

MixerLedger ledger(const MixerShape& s, int64_t t, const MixerOptions& given) {
  const int64_t w = s.head_dim(), k = read_options<Options>("bilstm", given).hidden_of(s);
  const int64_t weights = 2 * s.heads * 4 * k * (w + k);
  return skeleton_ledger(s, t, {weights + 2 * s.heads * 8 * k, t * weights, t}, 2 * k);
}

}  // namespace

OCCAM_REGISTER_MIXER(bilstm,
                     {"bilstm", "one bidirectional LSTM a head", make, ledger, MixerKnob{"hidden", 8, 8}});

}  // namespace occam
