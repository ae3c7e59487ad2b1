#pragma once
#include <cstdint>

#include "core/half.h"

namespace occam::kernels::ladder {

/// Every step: y = softmax of each of `rows` contiguous rows of `n` elements; n is at most 1024 and, where
/// packs are loaded (v3), a multiple of 8.
void softmax_v1_naive(const bf16* x, bf16* y, int64_t rows, int64_t n, void* stream);
void softmax_v2_warp(const bf16* x, bf16* y, int64_t rows, int64_t n, void* stream);
void softmax_v3_registers(const bf16* x, bf16* y, int64_t rows, int64_t n, void* stream);

}  // namespace occam::kernels::ladder
