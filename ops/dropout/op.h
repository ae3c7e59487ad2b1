#pragma once
#include "core/tensor.h"

namespace occam {

/// Each element is zeroed with probability p, the others are multiplied by 1 / (1 - p) (Srivastava et al.,
/// JMLR 2014). x itself when not training or p is 0. p in [0, 1). The mask is Philox of (op_random's key for
/// this call, step, element): the same on every device.
Tensor dropout(const Tensor& x, double p, bool training);

/// Stochastic depth (Huang et al., arXiv 1603.09382): the same for whole samples (axis 0). timm's drop_path.
Tensor drop_path(const Tensor& x, double p, bool training);

/// A drop path that is drawn already: samples are zeroed where philox_uniform(key, step, sample) < p, the
/// others multiplied by 1 / (1 - p).
struct BranchDrop {
  double p = 0;  // 0: none, and the rest is not used
  uint64_t key = 0;
  Tensor step;  // i64 [1] on x's device; copied
};
Tensor drop_path(const Tensor& x, const BranchDrop& drop);

}  // namespace occam
