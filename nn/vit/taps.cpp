#include "nn/vit/taps.h"

#include "core/check.h"

namespace occam {

MixerTaps::MixerTaps(VisionTransformer& model, const std::vector<int64_t>& blocks) {
  for (int64_t i : blocks) {
    TokenMixer& mixer = model.block(i).mixer();
    OCCAM_CHECK(mixer.has_tap(), ErrorKind::usage, "block {}: mixer {} has no head outputs", i, mixer.kind());
    hooks_.push_back(
        mixer.add_hook([this, i](const std::string&, const Tensor& x, const Tensor&) { inputs_[i] = x; }));
    hooks_.push_back(mixer.proj()->add_hook(
        [this, i](const std::string&, const Tensor& x, const Tensor&) { heads_[i] = x; }));
  }
}

void MixerTaps::clear() {
  inputs_.clear();
  heads_.clear();
}

const Tensor& MixerTaps::get(const ByBlock& tensors, int64_t i) {
  auto it = tensors.find(i);
  OCCAM_CHECK(it != tensors.end(), ErrorKind::internal, "block {} is not tapped or no forward has run", i);
  return it->second;
}

}  // namespace occam
