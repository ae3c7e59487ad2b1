#pragma once
#include "core/tensor.h"

namespace occam {

/// The same values in another floating dtype; `x` itself when it has that dtype. The gradient comes back in
/// x's.
Tensor cast(const Tensor& x, DType dtype);

}  // namespace occam
