#pragma once
// From the layout of the original implementation of arXiv 2605.18865: one LSTM as wide as the model, whose
// matrices hold a block for each head and zeros elsewhere.
#include "core/io/safetensors.h"

namespace occam {

/// The names X of all nn.LSTMs below.
std::vector<std::string> wide_lstms(const NamedTensors& tensors);
/// Where `tensors` hold a bidirectional PyTorch nn.LSTM X (X.weight_ih_l0 [4hk, hw], X.weight_hh_l0 [4hk,
/// hk], X.bias_ih_l0 and X.bias_hh_l0 [4hk], and the same with _reverse), X.weight_ih, ... of `heads` blocks
/// take its place (see README.md). A wide `head_proj` ([hw, 2hk], bias [hw]) becomes [h, w, 2k] and [h, w];
/// its columns are either [forward | backward] of all heads or these head by head, whichever its zeros show.
/// All else is kept. Throws Error{input} for missing parts, sizes that heads do not divide and weights
/// outside the blocks, which h separate LSTMs could not express.
NamedTensors blocks_of_wide_lstm(const NamedTensors& tensors, int64_t heads);

}  // namespace occam
