#pragma once
#include "core/tensor.h"

namespace occam {

/// x Phi(x), exact (Hendrycks & Gimpel, arXiv 1606.08415): the form of timm's ViT.
Tensor gelu(const Tensor& x);
/// The same by tanh.
Tensor gelu_tanh(const Tensor& x);
Tensor silu(const Tensor& x);
Tensor sigmoid(const Tensor& x);
Tensor tanh(const Tensor& x);
/// max(x, 0); the gradient at 0 is 0.
Tensor relu(const Tensor& x);
Tensor exp(const Tensor& x);
/// Natural logarithm.
Tensor log(const Tensor& x);

}  // namespace occam
