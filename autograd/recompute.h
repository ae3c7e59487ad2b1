#pragma once
// Trading time for memory: a part of a model that keeps its inputs only and runs again in backward.
// Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
#include <functional>
#include <vector>

#include "core/tensor.h"

namespace occam {

using RecomputeFn = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;

/// fn(inputs), of whose graph nothing is kept but the inputs. Backward calls fn once more, under the scope
/// path and with the random numbers of the first call, and goes through the graph made then. Gradients have
/// the bits they would have without: of the inputs, of parameters and of any other tensor that fn reads.
/// (Where something fn reads is used outside too, its gradient is summed in another order: first within, then
/// with the rest.)
///
/// fn must do the same in both calls; what it refers to must live until backward. Calls nest. With gradients
/// off, or when nothing in fn wants one, it is a plain call. Nothing waits for the device. A tensor made
/// inside that gets out otherwise than as a result has no way back: backward through it is an
/// Error{internal}.
std::vector<Tensor> recompute(const RecomputeFn& fn, const std::vector<Tensor>& inputs);
Tensor recompute(const std::function<Tensor(const Tensor&)>& fn, const Tensor& input);

}  // namespace occam
