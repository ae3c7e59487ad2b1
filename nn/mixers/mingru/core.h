#pragma once
// What minGRU and minLSTM share: the mixer but for its cell.
#include "nn/mixers/options.h"
#include "ops/diagonal_scan/op.h"

namespace occam {

struct MinRnnOptions : HiddenOptions {
  std::string gates = "head";
  ScanOptions scan;

  template <class V>
  void visit(V& v) {
    HiddenOptions::visit(v);
    v("gates", gates, "what a gate sees of a token: its head's channels or all of them",
      Choices{"head", "dense"});
    scan.visit(v);
  }
  bool is_dense() const { return gates == "dense"; }
};

/// `kind` is the module's; a literal.
std::unique_ptr<TokenMixer> make_min_rnn(const char* kind, GatedCell cell, const MixerShape& shape,
                                         const MinRnnOptions& options);
MixerLedger min_rnn_ledger(GatedCell cell, const MixerShape& shape, int64_t tokens,
                           const MinRnnOptions& options);

}  // namespace occam
