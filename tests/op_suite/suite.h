#pragma once
// The checks that every sample of every op goes through. A check returns "" when it holds, else what is
// wrong; a text starting with "skip:" means that it does not apply here. They are plain functions so that the
// suite itself can be tested on ops that are wrong on purpose (mutation_test.cpp).
#include <functional>
#include <string>
#include <vector>

#include "ops/spec.h"

namespace occam::suite {

struct Check {
  const char* name;
  bool on_gpu;
  std::function<std::string(const spec::Spec&, const spec::Sample&)> run;
};
const std::vector<Check>& all_checks();
/// The check of that name; throws when there is none.
const Check& check_named(const std::string& name);

/// Inputs of a sample as tensors, the same values at every call with the same `seed`. Floating ones that want
/// it require gradients.
std::vector<Tensor> make_inputs(const spec::Spec& spec, const spec::Sample& sample, DType dtype,
                                Device device = kCPU, bool with_grad = true, uint64_t seed = 7);
/// Fixed random cotangents of the outputs; undefined where no gradient is wanted.
std::vector<Tensor> make_cotangents(const spec::Sample& sample, const std::vector<Tensor>& outputs);
/// Outputs and the gradients of all inputs (undefined where none) under those cotangents; `cotangents` when
/// they were made before.
struct Result {
  std::vector<Tensor> outputs, grads;
};
Result run_sample(const spec::Sample& sample, const spec::Call& call, const std::vector<Tensor>& inputs,
                  const std::vector<Tensor>* cotangents = nullptr);

/// Largest allowed |got - want|: factor * unit roundoff * sqrt(length) * (rms of want + |want| + terms).
struct Tolerance {
  double roundoff, length = 1, factor = 8;
  double extra_relative = 0;  // in place of unit roundoff: roundings to a smaller type on the way
  double terms = 0;           // size of what cancels in an element
};
/// First element of `got` outside the tolerance in words, or "". NaN equals NaN only; infinities must be
/// equal.
std::string compare(const std::vector<double>& got, const std::vector<double>& want,
                    const Tolerance& tolerance);
/// "" when both hold the same bits.
std::string compare_bits(const Tensor& got, const Tensor& want);

}  // namespace occam::suite
