#pragma once
// Numerical check of gradients: central differences in f64 against backward, under a random cotangent. (A
// plain sum as the loss is blind to softmax and norms, whose rows sum to a constant.)
#include <functional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace occam {

using TensorFn = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;

struct GradcheckOptions {
  uint64_t seed = 1;
  /// Up to this many input elements every coordinate is checked; above it, random coordinates and directions.
  int64_t full_below = 48;
  double tolerance = 2e-6;  // relative to the size of the gradient
};

/// Inputs are contiguous f64 CPU tensors; those that require a gradient are checked. Returns the first
/// mismatch in words, or "" when all agree.
std::string gradcheck(const TensorFn& fn, const std::vector<Tensor>& inputs,
                      const GradcheckOptions& options = {});

}  // namespace occam
