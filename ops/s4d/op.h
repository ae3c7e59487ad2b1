#pragma once
#include "core/ragged.h"

namespace occam {

/// Diagonal state space S4D (Gu et al., "On the parameterization and initialization of diagonal state space
/// models", arXiv 2206.11893), both directions in one op. Of direction r and channel c, with n complex
/// states, dt = exp(log_dt[r,c]) and A = -exp(a_log[r,c]) + i a_im[r,c]:
///   x_t = exp(dt A) x_{t-1} + u_t[c]     from x = 0
///   y_t = 2 Re sum_n out[n] (exp(dt A) - 1) / A x_t + skip[r,c] u_t[c]
/// which is the convolution of u with K_l = 2 Re sum_n out[n] (exp(dt A) - 1) / A exp(l dt A). Direction 0
/// runs from the first token to the last, direction 1 from the last to the first. u [b,t,c], log_dt [2,c],
/// a_log and a_im [2,c,n], out [2,c,n,2] (real and imaginary part), skip [2,c]
/// -> [b,t,h,2w] with c = h w: of every head the channels of direction 0, then those of direction 1. Throws
/// Error{shape} when c is no multiple of `heads` or n is 0 or above 32. With `rows` [b,t] is [n]: each
/// sequence as if called alone.
Tensor s4d(const Tensor& u, const Tensor& log_dt, const Tensor& a_log, const Tensor& a_im, const Tensor& out,
           const Tensor& skip, int64_t heads, const Sequences& rows = {});

}  // namespace occam
