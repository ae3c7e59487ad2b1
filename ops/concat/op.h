#pragma once
#include <vector>

#include "core/tensor.h"

namespace occam {

/// Joins tensors along `axis`; all other sizes must be equal.
Tensor concat(const std::vector<Tensor>& xs, int axis);

}  // namespace occam
