#pragma once
#include "core/tensor.h"

namespace occam {

/// Depthwise convolution over the patch grid of tokens, with a rule for the tokens before it (class,
/// distillation). x [b,t,c]: t - grid_h*grid_w prefix tokens, then the patches row by row; w [kh,kw,c] with
/// odd kh, kw; prefix_w [2,c]; bias [c] -> [b,t,c]. Channel by channel
///   patch (r, q):  bias + sum_ij w[i,j] x[r + i - kh/2, q + j - kw/2]     (0 outside the grid)
///   prefix token:  bias + prefix_w[0] x + prefix_w[1] (mean of x over the patches)
/// so that a prefix token's window is itself and the whole grid. Chollet, "Xception", 2017, for the depthwise
/// convolution; the prefix rule is ours. Throws Error{shape} for even kernels and a grid that does not fit.
Tensor dwconv(const Tensor& x, const Tensor& w, const Tensor& prefix_w, const Tensor& bias, int64_t grid_h,
              int64_t grid_w);

}  // namespace occam
