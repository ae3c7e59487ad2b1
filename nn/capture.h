#pragma once
// A model's forward pass with fixed shapes, captured into a CUDA graph.
#include "core/replay.h"
#include "nn/module.h"

namespace occam {

/// Where the values of a module's parameters lie: recorded work is void when this changes. Shadows of masters
/// that changed are refreshed on the way.
uint64_t parameter_places(Module& model);

/// model(images) in evaluation mode without gradients, replayed from the third call of a shape on. On a CPU
/// a plain call.
class CapturedForward {
 public:
  explicit CapturedForward(Module& model);
  /// Images of any floating dtype; they are converted to the compute dtype. The result is overwritten by the
  /// next call once captured() is true.
  Tensor operator()(const Tensor& images);

  bool captured() const { return replay_.captured(); }
  /// Why the forward pass is not captured; empty when it is, or has not been tried.
  const std::string& fallback() const { return replay_.fallback(); }
  /// Kernels in the graph; 0 when not captured.
  int64_t nodes() const { return replay_.nodes(); }

 private:
  Module& model_;
  Replay replay_;
  uint64_t places_ = 0;
  Tensor images_, result_;
};

}  // namespace occam
