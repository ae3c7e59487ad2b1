#include "nn/mixers/bilstm/head_lstm.h"
#include "nn/mixers/skeleton.h"

namespace occam {

namespace {

struct Options {
  int64_t hidden = 0;
  ScanOptions scan;

  template <class V>
  void visit(V& v) {
    v("hidden", hidden, "width of each head's state in each direction; 0 = the head's width",
      Range{0, 65536});
    scan.visit(v);
  }
  int64_t hidden_of(const MixerShape& s) const { return hidden > 0 ? hidden : s.head_dim(); }
};

std::unique_ptr<TokenMixer> make(const MixerShape& s, const MixerOptions& given) {
  const Options options = read_options<Options>("bilstm", given);
  const int64_t k = options.hidden_of(s);
  return std::make_unique<SkeletonMixer>(
      "BiLstm", s, MixerCore{"rnn", std::make_unique<HeadLstm>(s.heads, s.head_dim(), k), 2 * k},
      options.scan);
}

MixerLedger ledger(const MixerShape& s, int64_t t, const MixerOptions& given) {
  const int64_t w = s.head_dim(), k = read_options<Options>("bilstm", given).hidden_of(s);
  return skeleton_ledger(s, t, {HeadLstm::params(s.heads, w, k), t * HeadLstm::macs(s.heads, w, k), t},
                         2 * k);
}

}  // namespace

OCCAM_REGISTER_MIXER(bilstm,
                     {"bilstm", "one bidirectional LSTM a head", make, ledger, MixerKnob{"hidden", 8, 8}});

}  // namespace occam
