#pragma once
// What a graph keeps in memory for backward.
#include <cstdint>
#include <span>
#include <unordered_set>

#include "core/tensor.h"

namespace occam {

/// Bytes of the memory that the nodes behind `outputs` have saved, each block once however many views of it
/// are saved; blocks in `known` (parameters, say) are left out.
int64_t saved_bytes(std::span<const Tensor> outputs, const std::unordered_set<const Storage*>& known = {});

}  // namespace occam
