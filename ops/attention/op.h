#pragma once
#include <optional>

#include "core/tensor.h"

namespace occam {

/// Scaled dot-product attention of each head (Vaswani et al., arXiv 1706.03762, equation 1):
///   y[b,i,h,:] = sum_j softmax_j(scale * q[b,i,h,:] . k[b,j,h,:]) v[b,j,h,:]
/// qkv [b,t,3,h,d] holds q, k and v of each token as ViT's fused projection leaves them; the result is
/// [b,t,h,d]. key_mask (u8 or bool [b,t], 1 = attend) leaves keys out; their entries must still be finite.
/// A row that may attend to nothing is zero and passes no gradient. `scale` is 1/sqrt(d) unless given.
/// Memory beside inputs and output: one float for each row ([b,h,t], log sum exp), kept for backward.
/// Throws Error{shape}: axes that do not fit, d = 0, a mask of another dtype.
Tensor attention(const Tensor& qkv, const Tensor& key_mask = {}, std::optional<double> scale = {});

}  // namespace occam
