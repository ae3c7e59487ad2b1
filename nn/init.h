#pragma once
// Initial values. An element depends on (key, its index) alone, so results do not depend on threads or order.
#include "nn/parameter.h"

namespace occam::init {

Init constant(double value);
inline Init zeros() { return constant(0); }
inline Init ones() { return constant(1); }
Init normal(double std);
/// Normal, redrawn outside [-2, 2] as timm's trunc_normal_ does by default: the limits are absolute, not in
/// standard deviations.
Init trunc_normal(double std);
/// Uniform in [-limit, limit).
Init uniform(double limit);
/// PyTorch's default of linear and convolution layers and of their biases: uniform within 1/sqrt(fan_in).
Init fan_in_uniform(int64_t fan_in);
/// f(n) of the place n in the last axis.
Init by_place(double (*f)(int64_t n));

// Of state space layers, as in Mamba and S4D: a step size is log-uniform in [0.001, 0.1].
/// The logarithm of a step size.
Init log_step();
/// A bias whose softplus is a step size.
Init softplus_step();
/// The logarithm of a rate uniform in [1, 16].
Init log_rate();

}  // namespace occam::init
