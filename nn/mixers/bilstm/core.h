#pragma once
// What bilstm and bigru share: the mixer but for its recurrent network.
#include "nn/mixers/head_rnn.h"
#include "nn/mixers/skeleton.h"

namespace occam {

struct RnnOptions : HiddenOptions {
  ScanOptions scan;

  template <class V>
  void visit(V& v) {
    HiddenOptions::visit(v);
    scan.visit(v);
  }
};

/// Rnn: HeadLstm or HeadGru; `kind` is the module's, a literal.
template <class Rnn>
std::unique_ptr<TokenMixer> make_rnn(const char* kind, const MixerShape& s, const RnnOptions& o) {
  const int64_t k = o.hidden_of(s);
  return std::make_unique<SkeletonMixer>(
      kind, s, MixerCore{"rnn", std::make_unique<Rnn>(s.heads, s.head_dim(), k), 2 * k}, o.scan);
}
template <class Rnn>
MixerLedger rnn_ledger(const MixerShape& s, int64_t t, const RnnOptions& o) {
  const int64_t w = s.head_dim(), k = o.hidden_of(s);
  return skeleton_ledger(s, t, {Rnn::params(s.heads, w, k), t * Rnn::macs(s.heads, w, k), t}, 2 * k);
}

}  // namespace occam
