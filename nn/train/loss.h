#pragma once
#include <vector>

#include "data/loader.h"

namespace occam {

/// Mean over a model's heads [b, classes] of the cross-entropy with the batch's labels, or with its mixed
/// targets where the loader made them; both smoothed. Scalar f32.
Tensor label_loss(const std::vector<Tensor>& heads, const Batch& batch, double smoothing);

}  // namespace occam
