#include "nn/mixers/mingru/core.h"

namespace occam {

namespace {

struct MinLstm {
  using Options = MinRnnOptions;
  static constexpr auto about = "bidirectional minLSTM, whose gates do not see the state";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return make_min_rnn("MinLstm", GatedCell::min_lstm, s, o);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    return min_rnn_ledger(GatedCell::min_lstm, s, t, o);
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(minlstm, MinLstm);

}  // namespace occam
