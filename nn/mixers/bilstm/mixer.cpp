#include "nn/init.h"
#include "nn/mixers/options.h"
#include "nn/plan.h"
#include "ops/grouped_linear/op.h"
#include "ops/lstm/op.h"
#include "ops/view/op.h"

namespace occam {

namespace {

struct Options {
  int64_t hidden = 0;

  template <class V>
  void visit(V& v) {
    v("hidden", hidden, "width of each head's state in each direction; 0 = the head's width",
      Range{0, 65536});
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

/// `head_proj`: every head's own linear layer.
class GroupedLinear : public Module {
 public:
  GroupedLinear(int64_t heads, int64_t in, int64_t out)
      : weight_(param("weight", {heads, out, in}, init::fan_in_uniform(in))),
        bias_(param("bias", {heads, out}, init::fan_in_uniform(in))) {}
  const char* kind() const override { return "GroupedLinear"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    plan.add_macs(x[0] * x[1] * weight_.numel());
    return x.with(-1, weight_.shape()[1]);
  }

 protected:
  Tensor forward(const Tensor& x) override { return grouped_linear(x, weight_.value(), bias_.value()); }

 private:
  Parameter &weight_, &bias_;
};

LinearOptions new_linear(int64_t fan_in) {
  return {.weight = init::fan_in_uniform(fan_in), .bias_init = init::fan_in_uniform(fan_in)};
}

class BiLstm : public TokenMixer {
 public:
  BiLstm(const MixerShape& s, int64_t hidden)
      : TokenMixer(s),
        pre_(s.dim, s.dim, new_linear(s.dim)),
        rnn_(s.heads, s.head_dim(), hidden),
        head_proj_(s.heads, 2 * hidden, s.head_dim()),
        proj_(s.dim, s.dim) {
    sub("pre", pre_);
    sub("rnn", rnn_);
    sub("head_proj", head_proj_);
    sub("proj", proj_);
  }
  const char* kind() const override { return "BiLstm"; }
  Linear* proj() override { return &proj_; }
  Shape plan(const Shape& x, Plan& plan) const override {
    const MixerShape& s = mixer_shape();
    plan.run(pre_, x);
    plan.run(head_proj_, plan.run(rnn_, {x[0], x[1], s.heads, s.head_dim()}));
    return plan.run(proj_, x);
  }

 protected:
  Tensor mix(const Tensor& x) override {
    const int64_t b = x.size(0), t = x.size(1);
    const MixerShape& s = mixer_shape();
    Tensor by_head = reshape(pre_(x), {b, t, s.heads, s.head_dim()});
    return reshape(head_proj_(rnn_(by_head)), {b, t, s.dim});
  }

 private:
  Linear pre_;
  HeadLstm rnn_;
  GroupedLinear head_proj_;
  Linear proj_;
};

MixerLedger bilstm_ledger(const MixerShape& s, int64_t t, const MixerOptions& options) {
  const int64_t d = s.dim, w = s.head_dim(), k = read_options<Options>("bilstm", options).hidden_of(s);
  const int64_t recurrent = 2 * s.heads * 4 * k * (w + k), out = s.heads * 2 * k * w;
  return {2 * (d * d + d) + recurrent + 2 * s.heads * 8 * k + out + d, t * (2 * d * d + recurrent + out), t};
}

}  // namespace

OCCAM_REGISTER_MIXER(bilstm, {"bilstm", "one bidirectional LSTM a head",
                              [](const MixerShape& s, const MixerOptions& o) -> std::unique_ptr<TokenMixer> {
                                return std::make_unique<BiLstm>(
                                    s, read_options<Options>("bilstm", o).hidden_of(s));
                              },
                              bilstm_ledger});

}  // namespace occam
