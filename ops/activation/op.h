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
/// x + 1 for x > 0, else e^x: positive, for the features of linear attention (Katharopoulos et al., arXiv
/// 2006.16236).
Tensor elu_plus_one(const Tensor& x);

}  // namespace occam
