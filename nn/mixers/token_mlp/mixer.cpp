#include "core/check.h"
#include "nn/layers/mlp.h"
#include "nn/mixers/skeleton.h"
#include "ops/view/op.h"

namespace occam {

namespace {

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

struct TokenMlpMixer {
  struct Options {
    static constexpr MixerKnob knob{"hidden", 8, 8, 1 << 20};
    int64_t hidden = 0;

    template <class V>
    void visit(V& v) {
      v("hidden", hidden, "hidden width of the MLP over tokens; 0 = half the model's width",
        Range{0, knob.last});
    }
    int64_t hidden_of(const MixerShape& s) const {
      return hidden > 0 ? hidden : std::max<int64_t>(s.dim / 2, 1);
    }
  };
  static constexpr auto about = "an MLP along the tokens (MLP-Mixer)";
  static constexpr bool needs_grid = true;  // there are weights for every token
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return std::make_unique<SkeletonMixer>(
        "TokenMlpMixer", s,
        MixerCore{"tokens", std::make_unique<TokenMlp>(s.tokens(), o.hidden_of(s)), s.head_dim()});
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t n = o.hidden_of(s);
    return skeleton_ledger(s, t, {2 * t * n + n + t, 2 * t * n * s.dim, 1}, s.head_dim());
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(token_mlp, TokenMlpMixer);

}  // namespace occam
