#pragma once
// Times of single ops at the sizes of a DeiT against the roofline of their cost.
#include <string>
#include <vector>

#include "apps/bench/timing.h"
#include "core/io/json.h"
#include "core/ragged.h"
#include "core/tensor.h"

namespace occam {

/// Sizes that the cases are made of; the defaults are those of DeiT-Small at 224 pixels.
struct OpSizes {
  int64_t batch = 256, tokens = 197, dim = 384, heads = 6, classes = 1000, image = 224, patch = 16;
  int64_t parameters = 22'000'000;  // of an optimiser's step
};

/// One op at one size. `make` gives its inputs; those that want gradients are marked.
struct OpCase {
  std::string op;     // its name in op_table()
  std::string shape;  // for people: "linear 384 -> 1152"
  std::function<std::vector<Tensor>()> make;
  std::function<Tensor(const std::vector<Tensor>&)> call;
};

/// The cases of `op`, or of every op that has one; views do no work and have none. Throws Error{usage} for a
/// name that op_table() does not hold.
std::vector<OpCase> op_cases(const std::string& op, const OpSizes& sizes, Device device, DType dtype);
/// Those of the ops that token mixers other than attention are made of, without a check of names.
std::vector<OpCase> scan_cases(const OpSizes& sizes, Device device, DType dtype);
/// As many sequences of mixed lengths as images, from a fifth of the tokens to all of them, evenly drawn;
/// what a case says of them; and the shape [n,...] of their rows for [b,t,...], other shapes as they are.
Sequences mixed_sequences(const OpSizes& sizes, Device device);
std::string what_of(const Sequences& rows);
Shape ragged_shape(const Shape& padded, const OpSizes& sizes, const Sequences& rows);
/// Ops of op_table() that are neither views nor have a case.
std::vector<std::string> ops_without_case();

/// Lines of the forward and, where there is one, of the backward pass: op, shape, pass, ms, gflop_s, gb_s,
/// floor_ms, share_of_roofline, bound, by (graph: without the host's part). The least work of a backward pass
/// is taken as twice the FLOPs of the forward pass, and as reading inputs and the output's gradient and
/// writing the inputs' gradients.
std::vector<Json> time_op(const OpCase& c, Device device, DType dtype, const TimingOptions& options,
                          bool tiny);

}  // namespace occam
