#pragma once
#include "core/ragged.h"

namespace occam {

/// Short depthwise convolution along the tokens in both directions, then SiLU: what precedes a selective
/// state space (Gu and Dao, arXiv 2312.00752; Dao and Gu, arXiv 2405.21060). With a kernel of k taps and
/// zeros outside the sequence
///   direction 0: y_t = silu(bias + sum_i w_i x_{t-(k-1)+i}),  direction 1: ... x_{t+(k-1)-i}
/// so the last tap meets the token itself. x [b,t,2,c], w [2,c,k], bias [2,c] -> [b,t,2,c]. With one
/// direction in their place, x [b,t,1,c], the taps lie round the token (Hydra: Hwang et al., arXiv
/// 2407.09941):
///   y_t = silu(bias + sum_i w_i x_{t-(k-1)+i+k/2}), as many on either side where k is odd.
/// x may be a view with its last axis contiguous. Throws Error{shape} for k = 0 or k > 8 and more than two
/// directions. With `rows` [b,t] is [n]: each sequence as if called alone.
Tensor short_conv(const Tensor& x, const Tensor& w, const Tensor& bias, const Sequences& rows = {});

}  // namespace occam
