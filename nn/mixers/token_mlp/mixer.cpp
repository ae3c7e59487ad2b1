#include "core/check.h"
#include "nn/layers/mlp.h"
#include "nn/mixers/skeleton.h"
#include "ops/view/op.h"

namespace occam {

namespace {

struct Options {
  int64_t hidden = 0;

  template <class V>
  void visit(V& v) {
    v("hidden", hidden, "hidden width of the MLP over tokens; 0 = half the model's width", Range{0, 1 << 20});
  }
  int64_t hidden_of(const MixerShape& s) const {
    return hidden > 0 ? hidden : std::max<int64_t>(s.dim / 2, 1);
  }
};

Options read(const MixerShape& s, const MixerOptions& given) {
  OCCAM_CHECK(s.has_grid(), ErrorKind::usage,
              "mixer token_mlp has a weight for every token and needs the model's patch grid");
  return read_options<Options>("token_mlp", given);
}

/// One MLP along the tokens, the same for every channel: [b, t, h, w] -> [b, t, h, w].
class TokenMlp : public Mlp {
 public:
  TokenMlp(int64_t tokens, int64_t hidden) : Mlp(tokens, hidden), tokens_(tokens) {}
  const char* kind() const override { return "TokenMlp"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    check(x[1]);
    Mlp::plan({x[0], x[2] * x[3], x[1]}, plan);
    return x;
  }

 protected:
  Tensor forward(const Tensor& x) override {
    check(x.size(1));
    Tensor channels = transpose(reshape(x, {x.size(0), x.size(1), x.size(2) * x.size(3)}), 1, 2);
    return reshape(transpose(Mlp::forward(channels), 1, 2), x.shape());
  }

 private:
  void check(int64_t tokens) const {
    OCCAM_CHECK(tokens == tokens_, ErrorKind::shape, "token_mlp: {} tokens; it was made for {}", tokens,
                tokens_);
  }

  int64_t tokens_;
};

std::unique_ptr<TokenMixer> make(const MixerShape& s, const MixerOptions& given) {
  const int64_t hidden = read(s, given).hidden_of(s);
  return std::make_unique<SkeletonMixer>(
      "TokenMlpMixer", s, MixerCore{"tokens", std::make_unique<TokenMlp>(s.tokens(), hidden), s.head_dim()});
}

MixerLedger ledger(const MixerShape& s, int64_t t, const MixerOptions& given) {
  const int64_t n = read(s, given).hidden_of(s);
  return skeleton_ledger(s, t, {2 * t * n + n + t, 2 * t * n * s.dim, 1}, s.head_dim());
}

}  // namespace

OCCAM_REGISTER_MIXER(token_mlp, {"token_mlp", "an MLP along the tokens (MLP-Mixer)", make, ledger,
                                 MixerKnob{"hidden", 8, 8}});

}  // namespace occam
