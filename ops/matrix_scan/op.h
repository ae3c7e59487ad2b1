#pragma once
#include "core/ragged.h"
#include "core/tensor.h"

namespace occam {

/// Tokens that a chunk takes at once; chunks follow one another.
inline constexpr int64_t kMatrixScanChunk = 64;

/// What a scan may have beside its products; all optional.
struct MatrixScanOptions {
  Tensor scale;        // u [b,t,2,h]: weight of what each token adds to the state
  Tensor skip;         // d [2,h]: y += d v
  Tensor floor;        // m [b,t,e,h]: y = num / max(|den|, m); not together with `skip`
  bool merge = false;  // one output for both directions
  // delta [b,t,h], with `merge` and without skip and floor: what a token weighs for itself, in place of its
  // products in both directions. The result is that of a quasiseparable matrix (Hydra: Hwang et al., arXiv
  // 2407.09941), v being that of direction 0 on the diagonal.
  Tensor diagonal;
};

/// Decaying matrix states of every head, both directions in one op (state space duality: Dao and Gu,
/// "Transformers are SSMs", arXiv 2405.21060). For head h and direction r, from S = 0:
///   S_t = exp(log_decay_t) S_{t-1} + u_t k_t v_t^T,   num_t = S_t^T q_t
/// which is num = (L o Q K^T) V with L_ij = u_j exp(sum of log_decay over j < m <= i) for j <= i. Direction 0
/// runs from the first token to the last, direction 1 from the last to the first. den is num with v = 1.
/// q, k [b,t,r,g,n], v [b,t,o,h,p], log_decay [b,t,2,h] <= 0 -> [b,t,h,2,p]; r and o are 2, or 1 where both
/// directions read the same. Head i of h reads q and k of group i g / h. With `merge` -> [b,t,h,1,p]: num and
/// den are sums over the directions in which direction 1 leaves out the token itself, so that it counts once.
/// log_decay, scale, skip, floor and diagonal are best in f32 beside bf16 values: they are read in f32.
/// With `rows` the leading [b,t] of all tensors but skip is [n], the rows of all sequences.
/// Throws Error{shape} when h is no multiple of g or a width is 0, Error{usage} for options that exclude each
/// other.
Tensor matrix_scan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay,
                   const MatrixScanOptions& options = {}, const Sequences& rows = {});

}  // namespace occam
