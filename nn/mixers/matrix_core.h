#pragma once
// What mixers over matrix states share: queries, keys and values of each head from its own channels, read by
// both directions.
#include "nn/mixers/skeleton.h"
#include "ops/matrix_scan/op.h"

namespace occam {

/// Steps of ops/matrix_scan.
inline int64_t scan_depth(int64_t tokens) { return (tokens + kMatrixScanChunk - 1) / kMatrixScanChunk; }

struct HeadQkv {
  Tensor q, k, v;  // [b,t,h,n], [b,t,h,n], [b,t,h,w]
};
/// Splits [b,t,h,2n+w].
HeadQkv split_qkv(const Tensor& qkv, int64_t n);
/// [b,t,h,x] -> [b,t,1,h,x]: the same for both directions.
Tensor for_both(const Tensor& x);

/// matrix_scan of parts [b,t,...], where with `rows` b is 1 and the tokens are the rows of all sequences.
Tensor scan_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay,
               MatrixScanOptions options, const Sequences& rows);

/// Multiply-adds of the recurrent form of both directions for t tokens.
inline int64_t scan_macs(const MixerShape& s, int64_t tokens, int64_t n) { return 4 * tokens * n * s.dim; }

}  // namespace occam
