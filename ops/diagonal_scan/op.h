#pragma once
#include "core/ragged.h"

namespace occam {

/// h_t = a_t h_{t-1} + b_t from h = 0, element by element, both directions at once: along axis 3 direction 0
/// runs from the first token to the last, direction 1 from the last to the first.
/// a, b [b,t,h,2,w] -> [b,t,h,2,w]. Here and below [b,t] is [n] with `rows`: each sequence as if called
/// alone.
Tensor diagonal_scan(const Tensor& a, const Tensor& b, const Sequences& rows = {});

/// Recurrences h_t = a_t h_{t-1} + (1 - a_t) g(v_t) whose gates depend on the token alone (Feng et al., "Were
/// RNNs all we needed?", arXiv 2410.01201), with s = sigmoid, g(v) = v + 1/2 for v >= 0 and s(v) below.
enum class GatedCell {
  min_gru,  // gates z, v:     a = 1 - s(z)
  min_lstm  // gates f, i, v:  a = s(f) / (s(f) + s(i))
};
/// Gates of a cell: 2 or 3.
int64_t gates_of(GatedCell cell);

/// The recurrence from gates before their activation. gates [b,t,h,2,k w] (k gates, each w wide) ->
/// [b,t,h,2 w]: the states of direction 0, then those of direction 1, of every token. Throws Error{shape}
/// when the gate axis does not divide.
Tensor gated_scan(const Tensor& gates, GatedCell cell, const Sequences& rows = {});

/// The same with gates of each head's own product: gates = w[r,h] x + bias[r,h] for direction r.
/// x [b,t,h,i], w [2,h,k w,i], bias [2,h,k w] -> [b,t,h,2 w].
Tensor head_gated_scan(const Tensor& x, const Tensor& w, const Tensor& bias, GatedCell cell,
                       const Sequences& rows = {});

/// grouped_linear(head_gated_scan(x, w, bias, cell), project, project_bias): project [h,o,2 w], project_bias
/// [h,o] or undefined -> [b,t,h,o]. Without gradients one kernel does both where the device can.
Tensor head_gated_scan_project(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& project,
                               const Tensor& project_bias, GatedCell cell, const Sequences& rows = {});

}  // namespace occam
