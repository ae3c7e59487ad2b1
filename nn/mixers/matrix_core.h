#pragma once
// What mixers over matrix states share: queries, keys and values of each head from its own channels, read by
// both directions.
#include "nn/mixers/skeleton.h"

namespace occam {

/// Tokens that a chunk of ops/matrix_scan takes at once.
inline constexpr int64_t kScanChunk = 64;
inline int64_t scan_depth(int64_t tokens) { return (tokens + kScanChunk - 1) / kScanChunk; }

struct HeadQkv {
  Tensor q, k, v;  // [b,t,h,n], [b,t,h,n], [b,t,h,w]
};
/// Splits [b,t,h,2n+w].
HeadQkv split_qkv(const Tensor& qkv, int64_t n);
/// [b,t,h,x] -> [b,t,1,h,x]: the same for both directions.
Tensor for_both(const Tensor& x);
/// Options of these mixers.
struct KeyOptions {
  int64_t key = 0;
  ScanOptions scan;

  template <class V>
  void visit(V& v) {
    v("key", key, "width of each head's queries and keys; 0 = the head's width", Range{0, 65536});
    scan.visit(v);
  }
  int64_t key_of(const MixerShape& s) const { return key > 0 ? key : s.head_dim(); }
};

/// Multiply-adds of the recurrent form of both directions for t tokens.
inline int64_t scan_macs(const MixerShape& s, int64_t tokens, int64_t n) { return 4 * tokens * n * s.dim; }

/// `f` of uniform numbers in [0, 1).
Init of_uniform(double (*f)(double));
/// New values of the gates of a decay (ops/scan_gates): softplus of the bias log-uniform in [0.001, 0.1], the
/// rate exp(a_log) uniform in [1, 16], as in Mamba-2.
Init new_step_bias();
Init new_rate_log();

}  // namespace occam
