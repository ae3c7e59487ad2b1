#pragma once
// What minGRU and minLSTM share: the mixer but for its cell.
#include "nn/mixers/mixer.h"
#include "ops/diagonal_scan/op.h"

namespace occam {

/// `name` is the mixer's, `kind` its module's; literals.
std::unique_ptr<TokenMixer> make_min_rnn(const char* name, const char* kind, GatedCell cell,
                                         const MixerShape& shape, const MixerOptions& options);
MixerLedger min_rnn_ledger(const char* name, GatedCell cell, const MixerShape& shape, int64_t tokens,
                           const MixerOptions& options);

}  // namespace occam
