#pragma once
#include "core/tensor.h"

namespace occam {

/// Root-mean-square norm (Zhang and Sennrich, arXiv 1910.07467) of what `gate` lets through, as after the
/// scan of Mamba-2 (Dao and Gu, arXiv 2405.21060): for each token and r
///   u = x silu(gate) (or x without a gate),  y = u / sqrt(mean over (a, c) of u^2 + eps) weight
/// x [b,t,a,r,c], weight [r,a,c], gate [b,t,r,a,c] -> [b,t,a,r,c]: with a heads and r directions a norm over
/// all heads of a direction, with a = 1 one of each r by itself. `gate` may be a view whose last two axes are
/// contiguous. Throws Error{shape} when there is nothing to average.
Tensor rms_norm(const Tensor& x, const Tensor& weight, const Tensor& gate = {}, double eps = 1e-5);

}  // namespace occam
