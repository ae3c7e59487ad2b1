#pragma once
#include "core/ragged.h"

namespace occam {

/// One bidirectional LSTM for every head, all heads and both directions in one op (Hochreiter and Schmidhuber
/// 1997; gates as in PyTorch's nn.LSTM). For head h and direction r, from states h = c = 0:
///   i f g o = w_ih[r,h] x_t + b_ih[r,h] + w_hh[r,h] h_{t-1} + b_hh[r,h]   (in this order along 4w)
///   c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),   h_t = sigmoid(o) tanh(c_t)
/// Direction 0 runs from the first token to the last, direction 1 from the last to the first.
/// x [b,t,h,i], w_ih [2,h,4w,i], w_hh [2,h,4w,w], b_ih and b_hh [2,h,4w] -> [b,t,h,2w]: the states of
/// direction 0, then those of direction 1, of every token. Throws Error{shape} when the gate axis is not 4w.
/// With `rows` [b,t] is [n]: each sequence as if called alone.
Tensor lstm(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh,
            const Sequences& rows = {});

/// The same of gated recurrent units (Cho et al. 2014; gates as in PyTorch's nn.GRU). From h = 0:
///   r z = sigmoid(w_ih[r,z] x_t + b_ih[r,z] + w_hh[r,z] h_{t-1} + b_hh[r,z])
///   n   = tanh(w_ih[n] x_t + b_ih[n] + r (w_hh[n] h_{t-1} + b_hh[n])),   h_t = (1 - z) n + z h_{t-1}
/// with the rows of r, z and n in this order along 3w: w_ih [2,h,3w,i], w_hh [2,h,3w,w], b_ih and b_hh
/// [2,h,3w].
Tensor gru(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh,
           const Sequences& rows = {});

}  // namespace occam
