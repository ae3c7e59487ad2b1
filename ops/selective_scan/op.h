#pragma once
#include "core/ragged.h"

namespace occam {

/// Selective scan S6 (Gu and Dao, "Mamba", arXiv 2312.00752), both directions in one op. For direction r,
/// channel c and its n states, from h = 0, with dt = softplus(delta_t[c]) and A = -exp(a_log[r,c]):
///   h_t = exp(dt A) h_{t-1} + dt B_t u_t[c]          B_t and C_t are those of the token and the direction
///   y_t[c] = C_t . h_t + skip[r,c] u_t[c]
/// Direction 0 runs from the first token to the last, direction 1 from the last to the first.
/// u, delta [b,t,2,c], a_log [2,c,n], in (B), out (C) [b,t,2,n], skip (D) [2,c] -> [b,t,h,2w] with c = h w:
/// of every head the channels of direction 0, then those of direction 1. Throws Error{shape} when c is no
/// multiple of `heads` or n is 0 or above 64. With `rows` [b,t] is [n]: each sequence as if called alone.
Tensor selective_scan(const Tensor& u, const Tensor& delta, const Tensor& a_log, const Tensor& in,
                      const Tensor& out, const Tensor& skip, int64_t heads, const Sequences& rows = {});

}  // namespace occam
