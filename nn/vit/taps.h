#pragma once
#include <map>
#include <vector>

#include "nn/vit/vit.h"

namespace occam {

/// While it lives, keeps what passes through the mixers of some blocks in the model's latest forward. Made
/// anew after a mixer was replaced.
class MixerTaps {
 public:
  MixerTaps(const MixerTaps&) = delete;
  MixerTaps& operator=(const MixerTaps&) = delete;
  /// Throws Error{usage} for a block that does not exist or whose mixer has no tap.
  MixerTaps(VisionTransformer& model, const std::vector<int64_t>& blocks);
  /// Normalised input [b, t, c] of the mixer of block i. Throws Error{internal} before the first forward.
  const Tensor& input(int64_t i) const { return get(inputs_, i); }
  /// Its head outputs [b, t, c] before the output projection, with their graph when one was recorded.
  const Tensor& heads(int64_t i) const { return get(heads_, i); }
  /// Lets go of the tensors.
  void clear();

 private:
  using ByBlock = std::map<int64_t, Tensor>;
  static const Tensor& get(const ByBlock& tensors, int64_t i);

  ByBlock inputs_, heads_;
  std::vector<Module::HookHandle> hooks_;
};

}  // namespace occam
