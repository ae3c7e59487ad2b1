#pragma once
#include "core/tensor.h"

namespace occam {

/// Each element is zeroed with probability p, the others are multiplied by 1 / (1 - p) (Srivastava et al.,
/// JMLR 2014). x itself when not training or p is 0. p in [0, 1). The mask is Philox of (op_random's key for
/// this call, step, element): the same on every device.
Tensor dropout(const Tensor& x, double p, bool training);

/// Stochastic depth (Huang et al., arXiv 1603.09382): the same for whole samples (axis 0). timm's drop_path.
Tensor drop_path(const Tensor& x, double p, bool training);

}  // namespace occam
