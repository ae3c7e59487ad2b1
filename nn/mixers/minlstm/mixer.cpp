#include "nn/mixers/mingru/core.h"

namespace occam {

namespace {

std::unique_ptr<TokenMixer> make(const MixerShape& s, const MixerOptions& options) {
  return make_min_rnn("minlstm", "MinLstm", GatedCell::min_lstm, s, options);
}

MixerLedger ledger(const MixerShape& s, int64_t t, const MixerOptions& options) {
  return min_rnn_ledger("minlstm", GatedCell::min_lstm, s, t, options);
}

}  // namespace

OCCAM_REGISTER_MIXER(minlstm, {"minlstm", "bidirectional minLSTM, whose gates do not see the state", make,
                               ledger, MixerKnob{"hidden", 8, 8}});

}  // namespace occam
