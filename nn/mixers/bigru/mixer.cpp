#include "nn/mixers/head_rnn.h"
#include "nn/mixers/skeleton.h"

namespace occam {

namespace {

struct BiGru {
  struct Options : HiddenOptions {
    ScanOptions scan;

    template <class V>
    void visit(V& v) {
      HiddenOptions::visit(v);
      scan.visit(v);
    }
  };
  static constexpr auto about = "one bidirectional GRU a head";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    const int64_t k = o.hidden_of(s);
    return std::make_unique<SkeletonMixer>(
        "BiGru", s, MixerCore{"rnn", std::make_unique<HeadGru>(s.heads, s.head_dim(), k), 2 * k}, o.scan);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t w = s.head_dim(), k = o.hidden_of(s);
    return skeleton_ledger(s, t, {HeadGru::params(s.heads, w, k), t * HeadGru::macs(s.heads, w, k), t},
                           2 * k);
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(bigru, BiGru);

}  // namespace occam
