#include "nn/mixers/mingru/core.h"

namespace occam {

namespace {

std::unique_ptr<TokenMixer> make(const MixerShape& s, const MixerOptions& options) {
  return make_min_rnn("mingru", "MinGru", GatedCell::min_gru, s, options);
}

MixerLedger ledger(const MixerShape& s, int64_t t, const MixerOptions& options) {
  return min_rnn_ledger("mingru", GatedCell::min_gru, s, t, options);
}

}  // namespace

OCCAM_REGISTER_MIXER(mingru, {"mingru", "bidirectional minGRU, whose gates do not see the state", make,
                              ledger, MixerKnob{"hidden", 8, 8}});

}  // namespace occam
