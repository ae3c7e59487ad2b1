#include "nn/mixers/attention/attention.h"
#include "nn/mixers/options.h"

namespace occam {

OCCAM_REGISTER_MIXER(fresh_attention,
                     {"fresh_attention", "softmax attention trained anew: a control for the training recipe",
                      [](const MixerShape& s, const MixerOptions& o) -> std::unique_ptr<TokenMixer> {
                        read_options<NoOptions>("fresh_attention", o);
                        return std::make_unique<Attention>(s);
                      },
                      [](const MixerShape& s, int64_t t, const MixerOptions&) {
                        return attention_ledger(s, t);
                      }});

}  // namespace occam
