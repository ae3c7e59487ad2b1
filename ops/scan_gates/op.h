#pragma once
#include "core/ragged.h"

namespace occam {

// Gates of the scans, [b,t,2,h] by direction and head. Results are f32 (f64 for f64) whatever the inputs are.
// With `rows` [b,t] is [n]: each sequence as if called alone.

struct SoftplusGates {
  Tensor scale, log_decay;  // both [b,t,2,h]
};
/// scale = softplus(x + bias), log_decay = -exp(a_log) scale: the step sizes of a selective state space and
/// what they leave of the state (Dao and Gu, arXiv 2405.21060). x [b,t,2,h], bias and a_log [2,h].
SoftplusGates softplus_gates(const Tensor& x, const Tensor& bias, const Tensor& a_log);

/// m_t = max(m_{t-1} + log sigmoid(f_t), i_t, 0) from m = 0, along each direction: the exponent that
/// exponential gates are divided by (Beck et al., "xLSTM", arXiv 2405.04517, eq. 15, with 0 added, below
/// which nothing needs help). i, f [b,t,2,h] -> [b,t,2,h]. No gradient: what is made with m does not depend
/// on it.
Tensor gate_maximum(const Tensor& i, const Tensor& f, const Sequences& rows = {});

struct ExponentialGates {
  Tensor scale, log_decay, floor;  // all [b,t,2,h]
};
/// scale = exp(i_t - m_t), log_decay = log sigmoid(f_t) + m_{t-1} - m_t, floor = exp(-m_t), where m_{t-1} is
/// the m before t in its direction, 0 at its start. m takes no gradient.
ExponentialGates exponential_gates(const Tensor& i, const Tensor& f, const Tensor& m,
                                   const Sequences& rows = {});

}  // namespace occam
