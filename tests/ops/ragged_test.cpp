// Ragged forms on NaN in the rows of no sequence, of inputs and of the results' gradients alike: nothing of
// them may reach a result or a gradient, not even multiplied by 0.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/device.h"
#include "core/rng.h"
#include "ops/clear_unused/op.h"
#include "ops/diagonal_scan/op.h"
#include "ops/elementwise/op.h"
#include "ops/lstm/op.h"
#include "ops/matrix_scan/op.h"
#include "ops/s4d/op.h"
#include "ops/scan_gates/op.h"
#include "ops/selective_scan/op.h"
#include "ops/short_conv/op.h"
#include "ops/wkv/op.h"

namespace occam {
namespace {

constexpr int64_t kRows = 29, kUsed = 26;

using Inputs = const std::vector<Tensor>&;
struct Case {
  const char* name;
  std::vector<Shape> shapes;  // of kRows rows: tokens
  Tensor (*call)(Inputs in, const Sequences& rows);
};

std::vector<Case> cases() {
  constexpr int64_t n = kRows;
  std::vector<Case> all{
      {"clear_unused", {{n, 3}}, [](Inputs x, const Sequences& s) { return clear_unused(x[0], s); }},
      {"diagonal_scan",
       {{n, 2, 2, 3}, {n, 2, 2, 3}},
       [](Inputs x, const Sequences& s) { return diagonal_scan(x[0], x[1], s); }},
      {"gated_scan",
       {{n, 2, 2, 6}},
       [](Inputs x, const Sequences& s) { return gated_scan(x[0], GatedCell::min_lstm, s); }},
      {"head_gated_scan_project",
       {{n, 2, 3}, {2, 2, 4, 3}, {2, 2, 4}, {2, 3, 4}, {2, 3}},
       [](Inputs x, const Sequences& s) {
         return head_gated_scan_project(x[0], x[1], x[2], x[3], x[4], GatedCell::min_gru, s);
       }},
      {"selective_scan",
       {{n, 2, 4}, {n, 2, 4}, {2, 4, 3}, {n, 2, 3}, {n, 2, 3}, {2, 4}},
       [](Inputs x, const Sequences& s) { return selective_scan(x[0], x[1], x[2], x[3], x[4], x[5], 2, s); }},
      {"s4d",
       {{n, 4}, {2, 4}, {2, 4, 3}, {2, 4, 3}, {2, 4, 3, 2}, {2, 4}},
       [](Inputs x, const Sequences& s) { return s4d(x[0], x[1], x[2], x[3], x[4], x[5], 2, s); }},
      {"wkv",
       {{n, 4}, {n, 4}, {4}, {4}},
       [](Inputs x, const Sequences& s) { return wkv(x[0], x[1], x[2], x[3], s); }},
      {"short_conv",
       {{n, 2, 4}, {2, 4, 3}, {2, 4}},
       [](Inputs x, const Sequences& s) { return short_conv(x[0], x[1], x[2], s); }},
      {"exponential_gates", {{n, 2, 2}, {n, 2, 2}}, [](Inputs x, const Sequences& s) {
         const ExponentialGates g = exponential_gates(x[0], x[1], gate_maximum(x[0], x[1], s), s);
         return g.scale + g.log_decay;
       }}};
  for (int64_t w : {2, 64}) {  // 64 has kernels of its own
    all.push_back({"lstm",
                   {{n, 1, w}, {2, 1, 4 * w, w}, {2, 1, 4 * w, w}, {2, 1, 4 * w}, {2, 1, 4 * w}},
                   [](Inputs x, const Sequences& s) { return lstm(x[0], x[1], x[2], x[3], x[4], s); }});
    all.push_back({"gru",
                   {{n, 1, w}, {2, 1, 3 * w, w}, {2, 1, 3 * w, w}, {2, 1, 3 * w}, {2, 1, 3 * w}},
                   [](Inputs x, const Sequences& s) { return gru(x[0], x[1], x[2], x[3], x[4], s); }});
    all.push_back({"matrix_scan with skip",
                   {{n, 2, 1, w}, {n, 2, 1, w}, {n, 2, 2, w}, {n, 2, 2}, {2, 2}},
                   [](Inputs x, const Sequences& s) {
                     return matrix_scan(x[0], x[1], x[2], x[3], {.skip = x[4]}, s);
                   }});
    all.push_back({"matrix_scan, merged and normed",
                   {{n, 1, 1, w}, {n, 1, 1, w}, {n, 1, 2, w}, {n, 2, 2}, {n, 2, 2}, {n, 1, 2}},
                   [](Inputs x, const Sequences& s) {
                     return matrix_scan(x[0], x[1], x[2], x[3], {.scale = x[4], .floor = x[5], .merge = true},
                                        s);
                   }});
  }
  return all;
}

void expect_no_nan(const Tensor& t, const std::string& what) {
  ASSERT_TRUE(t.defined()) << what;
  for (double x : detach(t).to_vector<double>()) ASSERT_FALSE(std::isnan(x)) << what;
}

void unused_rows_reach_nothing(DType dtype, Device device) {
  const Sequences rows{raw::to(from_vector(std::vector<int32_t>{0, 4, 4, 5, kUsed}), device), 22};
  Rng rng(1, "ragged");
  auto values = [&](const Shape& shape) {
    Tensor t = rand_uniform(shape, -1, -0.1, rng);  // what a logarithm of a decay may be
    if (shape[0] == kRows)
      raw::slice(t, 0, kUsed, kRows - kUsed).fill_(std::numeric_limits<double>::quiet_NaN());
    return raw::to(raw::to(t, dtype), device);
  };
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    std::vector<Tensor> in;
    for (const Shape& shape : c.shapes) in.push_back(values(shape)), set_requires_grad(in.back(), true);
    const Tensor y = c.call(in, rows);
    expect_no_nan(y, "result");
    backward(y, raw::to(values(y.shape()), y.dtype()));
    for (size_t i = 0; i < in.size(); ++i) expect_no_nan(grad_of(in[i]), "gradient " + std::to_string(i));
  }
}

TEST(Ragged, UnusedRowsReachNothing) { unused_rows_reach_nothing(DType::f32, kCPU); }

TEST(Ragged, UnusedRowsReachNothingOnGpu) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  for (DType dtype : {DType::f32, DType::bf16}) unused_rows_reach_nothing(dtype, cuda_device());
}

}  // namespace
}  // namespace occam
