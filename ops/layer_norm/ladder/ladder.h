#pragma once
#include "core/half.h"
#include "ops/layer_norm/kernel.h"

namespace occam::kernels::ladder {

/// Every step: what kernels::layer_norm_fwd does, for a branch without drop path; c is at most 1024 and,
/// where packs are loaded (v4), a multiple of 8.
using LayerNorm = LayerNormForward<bf16>;
void layer_norm_v1_naive(const LayerNorm& a, void* stream);
void layer_norm_v2_warp(const LayerNorm& a, void* stream);
void layer_norm_v3_fused(const LayerNorm& a, void* stream);
void layer_norm_v4_registers(const LayerNorm& a, void* stream);

/// sum = x + branch, a kernel of its own: what comes before v1 and v2.
void layer_norm_sum(const LayerNorm& a, void* stream);

}  // namespace occam::kernels::ladder
