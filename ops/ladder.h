#pragma once
// A ladder: one op's kernel from the plainest to the shipped one, each step with its one idea. The files of
// ops/<op>/ladder are compiled for apps/bench alone, in builds with CUDA:
//
//   v1_naive.cu ... vN_*.cu   one step each: one function, declared in ladder.h, plain types and a stream
//   ladder.h                  those functions, all of one signature
//   ladder.cpp                OCCAM_LADDER(<op>) { ... } says what they compute
//   README.md                 one line a step
#include <functional>
#include <string>
#include <vector>

#include "autograd/op_entry.h"
#include "core/tensor.h"

namespace occam {

struct LadderStep {
  std::string name;  // "v1_naive"
  std::string idea;  // one line: what it does that the one before does not
  /// Queues the work on `stream` (a cudaStream_t): outputs from inputs, all on the device.
  std::function<void(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs, void* stream)>
      run;
};

/// One problem that every step solves.
struct Ladder {
  std::string op, shape;
  std::vector<Tensor> inputs, outputs;  // on the device
  std::vector<Tensor> expected;         // of each output: f64 on the CPU, by the op's reference
  /// A result may be off by relative * |expected| + absolute: the roundings of its arithmetic.
  double relative = 0, absolute = 0;
  DType dtype = DType::bf16;  // of the products, for the ceiling
  Cost cost;
  std::vector<LadderStep> steps;
};

struct LadderEntry {
  const char* op;
  Ladder (*make)(Device device);
};
/// Every ladder, in folder order.
const std::vector<LadderEntry>& ladder_table();

#define OCCAM_LADDER(op)                  \
  namespace occam {                       \
  Ladder make_ladder_##op(Device device); \
  }                                       \
  occam::Ladder occam::make_ladder_##op(Device device)

}  // namespace occam
