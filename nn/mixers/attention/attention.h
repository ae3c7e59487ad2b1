#pragma once
#include "nn/mixers/options.h"

namespace occam {

/// Multi-head softmax attention with biased query, key and value: qkv [3c, c], proj [c, c]. Vaswani et al.,
/// "Attention Is All You Need", 2017. The tap is softmax(q k^T / sqrt(d)) v of all heads side by side.
class Attention : public TokenMixer {
 public:
  explicit Attention(const MixerShape& shape);
  const char* kind() const override { return "Attention"; }
  Shape plan(const Shape& x, Plan& plan) const override;
  Linear* proj() override { return &proj_; }

  /// Called in every forward with qkv [b, t, 3, h, d] in the compute dtype; one listener, an empty function
  /// removes it.
  void on_qkv(std::function<void(const Tensor& qkv)> listener) { on_qkv_ = std::move(listener); }

 protected:
  Tensor mix(const Tensor& x) override { return attend(x, qkv_(x)); }
  Tensor mix_normalised(const Tensor& x, LayerNorm& norm) override { return attend(x, qkv_.fused(x, &norm)); }

 private:
  Tensor attend(const Tensor& x, const Tensor& projected);

  Linear qkv_, proj_;
  std::function<void(const Tensor&)> on_qkv_;
};

/// What mixers that are softmax attention register.
struct AttentionMixer {
  using Options = NoOptions;
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options&) {
    return std::make_unique<Attention>(s);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options&) {
    const int64_t d = s.dim;
    return {4 * d * d + 4 * d, 4 * t * d * d + 2 * t * t * d, 1};
  }
};

}  // namespace occam
