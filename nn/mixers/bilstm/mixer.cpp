#include "nn/mixers/bilstm/core.h"

namespace occam {

namespace {

struct BiLstm {
  using Options = RnnOptions;
  static constexpr auto about = "one bidirectional LSTM a head";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return make_rnn<HeadLstm>("BiLstm", s, o);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    return rnn_ledger<HeadLstm>(s, t, o);
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(bilstm, BiLstm);

}  // namespace occam
