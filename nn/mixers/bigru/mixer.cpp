#include "nn/mixers/bilstm/core.h"

namespace occam {

namespace {

struct BiGru {
  using Options = RnnOptions;
  static constexpr auto about = "one bidirectional GRU a head";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return make_rnn<HeadGru>("BiGru", s, o);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    return rnn_ledger<HeadGru>(s, t, o);
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(bigru, BiGru);

}  // namespace occam
