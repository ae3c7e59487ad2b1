#pragma once
#include "nn/mixers/mixer.h"

namespace occam {

/// Multi-head softmax attention with biased query, key and value: qkv [3c, c], proj [c, c]. Vaswani et al.,
/// "Attention Is All You Need", 2017. The tap is softmax(q k^T / sqrt(d)) v of all heads side by side.
class Attention : public TokenMixer {
 public:
  explicit Attention(const MixerShape& shape);
  const char* kind() const override { return "Attention"; }
  Shape plan(const Shape& x, Plan& plan) const override;
  Linear* proj() override { return &proj_; }
  bool has_mixing_matrix() const override { return true; }

  /// Called in every forward with qkv [b, t, 3, h, d] in the compute dtype; one listener, an empty function
  /// removes it.
  void on_qkv(std::function<void(const Tensor& qkv)> listener) { on_qkv_ = std::move(listener); }

 protected:
  Tensor mix(const Tensor& x) override;

 private:
  Linear qkv_, proj_;
  std::function<void(const Tensor&)> on_qkv_;
};

MixerLedger attention_ledger(const MixerShape& shape, int64_t tokens);

}  // namespace occam
