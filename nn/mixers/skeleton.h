#pragma once
// The skeleton that mixers share unless they say otherwise:
//   u     = pre(x)                                 [b,t,c] -> by head [b,t,h,w], in scan order
//   v     = core(u)                                [b,t,h,k], directions side by side: k = 2w as a rule
//   heads = head_proj(v), each head's own layer    [b,t,h,w] -> [b,t,c], back in the model's order: the tap
//   y     = proj(heads)                            the projection of the mixer before it, taken over
#include <bit>
#include <functional>

#include "nn/init.h"
#include "nn/mixers/options.h"
#include "nn/mixers/ragged_core.h"

namespace occam {

/// Every head's own linear layer: [..., h, in] -> [..., h, out]; weight [h, out, in], bias [h, out].
class GroupedLinear : public Module {
 public:
  GroupedLinear(int64_t heads, int64_t in, int64_t out, bool bias = true);
  const char* kind() const override { return "GroupedLinear"; }
  Shape plan(const Shape& x, Plan& plan) const override;
  Tensor weight() { return weight_.value(); }
  /// Undefined without a bias.
  Tensor bias() { return bias_ ? bias_->value() : Tensor(); }

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  Parameter& weight_;
  Parameter* bias_;
};

/// Linear c -> c of a new module: PyTorch's default values.
LinearOptions new_linear(int64_t fan_in);

/// What a mixer puts into the skeleton.
struct MixerCore {
  std::string name;                // its parameters are blocks.<i>.attn.<name>.*
  std::unique_ptr<Module> module;  // [b, t, h, w] -> [b, t, h, width]; a RaggedCore where its ops allow it
  int64_t width = 0;
  /// Where one op does core and head_proj when no gradients are recorded: (u, head_proj's weight, its bias or
  /// undefined, rows) -> heads.
  std::function<Tensor(const Tensor&, const Tensor&, const Tensor&, const Sequences&)> projected = {};
};

/// Parts that a mixer may leave out.
struct SkeletonParts {
  bool pre = true;        // without: the core reads x itself
  bool head_bias = true;  // bias of head_proj
};

class SkeletonMixer : public TokenMixer {
 public:
  /// `kind` is a literal.
  SkeletonMixer(const char* kind, const MixerShape& shape, MixerCore core, const ScanOptions& scan = {},
                const SkeletonParts& parts = {});
  const char* kind() const override { return kind_; }
  Linear* proj() override { return &proj_; }
  Shape plan(const Shape& x, Plan& plan) const override;
  std::string why_not_ragged() const override;

 protected:
  Tensor mix(const Tensor& x) override { return mix(x, {}); }
  Tensor mix(const Tensor& x, const Sequences& rows) override;
  Tensor mix_normalised(const Tensor& x, LayerNorm& norm) override;
  Module& core() { return *core_.module; }

 private:
  /// The tap of what pre made.
  Tensor from_pre(const Tensor& x, const Sequences& rows);

  const char* kind_;
  std::unique_ptr<Linear> pre_;
  MixerCore core_;
  RaggedCore* ragged_core_;  // core_.module if it is one
  GroupedLinear head_proj_;
  Linear proj_;
  TokenOrder order_;
};

/// Steps of a scan of t tokens, which is a tree of ceil(log2 t), after its gates.
inline int64_t tree_depth(int64_t tokens) {
  return 1 + int64_t(std::bit_width(uint64_t(tokens > 0 ? tokens - 1 : 0)));
}

/// The ledger of a skeleton round a core of `width` channels a head that costs `core` by itself.
MixerLedger skeleton_ledger(const MixerShape& shape, int64_t tokens, const MixerLedger& core, int64_t width,
                            const SkeletonParts& parts = {});

}  // namespace occam
