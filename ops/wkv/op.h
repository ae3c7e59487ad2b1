#pragma once
#include "core/ragged.h"

namespace occam {

/// Bidirectional weighted key-value averages, channel by channel (Bi-WKV of Duan et al., "Vision-RWKV",
/// arXiv 2403.02308). k, v [b,t,c], decay w and bonus u [c] -> [b,t,c]:
///   y_t = (sum_{i != t} e^{k_i - w(|t-i|-1)/T} v_i + e^{u + k_t} v_t) / (the same without v)
/// with T the number of tokens. Linear in it; no exponential overflows, whatever the size of k, w and u. With
/// `rows` [b,t] is [n]: each sequence as if called alone.
Tensor wkv(const Tensor& k, const Tensor& v, const Tensor& w, const Tensor& u, const Sequences& rows = {});

}  // namespace occam
