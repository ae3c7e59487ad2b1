#pragma once
#include <span>
#include <vector>

#include "autograd/node.h"
#include "core/tensor.h"

namespace occam {

/// While it lives, backward checks every gradient for NaN and infinity and names the op that made the first.
/// Slow.
class AnomalyMode {
 public:
  AnomalyMode();
  ~AnomalyMode();
  AnomalyMode(const AnomalyMode&) = delete;
  AnomalyMode& operator=(const AnomalyMode&) = delete;
};

/// Back-propagates from `output` with the cotangent `gy` (undefined: 1, for a scalar), adding into the
/// gradients of all leaves it depends on. The graph is freed on the way. Throws Error{internal} when output
/// has no graph, was already back-propagated, or an op returned a gradient of the wrong shape.
void backward(const Tensor& output, const Tensor& gy = {});
/// Several outputs at once; gy[i] belongs to outputs[i].
void backward(std::span<const Tensor> outputs, std::span<const Tensor> gy);

/// What arrives at `ends` when `outputs` are back-propagated: nodes there are not run and nothing behind them
/// is touched; nodes before them are freed as usual. For a part of a graph on its own (recompute.h).
std::vector<Tensor> gradients_at(std::span<const Tensor> outputs, std::span<const Tensor> gy,
                                 std::span<const Edge> ends);

}  // namespace occam
