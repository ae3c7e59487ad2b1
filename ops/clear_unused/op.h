#pragma once
#include "core/ragged.h"

namespace occam {

/// x [n, ...] with 0 in the rows that belong to no sequence, in its gradient too. x itself where `rows` are
/// undefined.
Tensor clear_unused(const Tensor& x, const Sequences& rows);

}  // namespace occam
