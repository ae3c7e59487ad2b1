#include "nn/mixers/attention/attention.h"

namespace occam {

namespace {

struct Fresh : AttentionMixer {
  static constexpr auto about = "softmax attention trained anew: a control for the training recipe";
};

}  // namespace

OCCAM_REGISTER_MIXER(fresh_attention, Fresh);

}  // namespace occam
