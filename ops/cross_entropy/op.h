#pragma once
#include "core/tensor.h"

namespace occam {

/// Mean over the rows of -sum_k q_k log softmax(logits)_k with q = (1 - smoothing) onehot(label) + smoothing
/// / k (Szegedy et al., arXiv 1512.00567). logits [b, k], labels i64 [b] in [0, k) -> scalar, f32 (f64 for
/// f64 logits). On the CPU a label out of range is Error{shape}; on a GPU it makes the loss NaN.
Tensor cross_entropy(const Tensor& logits, const Tensor& labels, double smoothing = 0);

/// The same for given target distributions f32 [b, k] (mixup, cutmix); rows need not sum to 1.
Tensor soft_cross_entropy(const Tensor& logits, const Tensor& targets);

/// T^2 / b * sum over rows of KL(softmax(teacher / T) || softmax(student / T)): distillation by soft labels
/// (Hinton et al., arXiv 1503.02531). "Batch mean": the sum over classes is divided by the number of rows
/// only. No gradient for the teacher.
Tensor kl_div(const Tensor& student, const Tensor& teacher, double temperature = 1);

}  // namespace occam
