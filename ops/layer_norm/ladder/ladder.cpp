#include "ops/layer_norm/ladder/ladder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/grad_mode.h"
#include "core/rng.h"
#include "ops/elementwise/op.h"
#include "ops/ladder.h"
#include "ops/layer_norm/op.h"

OCCAM_LADDER(layer_norm) {
  using namespace occam;
  // The residual sum and norm of 128 images in DeiT-Small: 77 MB in and out, so more than the L2 cache.
  const int64_t rows = 128 * 197, c = 384;
  const float eps = 1e-6f;
  NoGrad no_grad;
  Rng rng(0, "ladder.layer_norm");
  auto normal = [&](const Shape& shape, double mean, double deviation) {
    return raw::to(rand_normal(shape, mean, deviation, rng), DType::bf16);
  };
  const Tensor x = normal({rows, c}, 0, 1), branch = normal({rows, c}, 0.1, 1);
  const Tensor weight = normal({c}, 1, 0.2), bias = normal({c}, 0, 0.2);
  // What is normalised is the sum as it is stored.
  const Tensor sum = raw::to(add(raw::to(x, DType::f64), raw::to(branch, DType::f64)), DType::bf16);
  const Tensor wide = raw::to(sum, DType::f64);
  const Tensor y = layer_norm(wide, raw::to(weight, DType::f64), raw::to(bias, DType::f64), double(eps));
  const std::vector<double> v = wide.to_vector<double>();
  std::vector<double> mean, rstd;
  for (auto at = v.begin(); at != v.end(); at += c) {
    double squares = 0;
    mean.push_back(std::accumulate(at, at + c, 0.0) / double(c));
    std::for_each(at, at + c, [&](double e) { squares += (e - mean.back()) * (e - mean.back()); });
    rstd.push_back(1 / std::sqrt(squares / double(c) + eps));
  }
  Ladder ladder;
  ladder.op = "layer_norm";
  ladder.shape = x.shape().str() + " bf16 and a branch";
  for (const Tensor& t : {x, branch, weight, bias}) ladder.inputs.push_back(raw::to(t, device));
  for (int i = 0; i < 2; ++i) ladder.outputs.push_back(empty_like(ladder.inputs[0]));
  for (int i = 0; i < 2; ++i) ladder.outputs.push_back(empty({rows}, {DType::f32, device}));
  ladder.expected = {wide, y, from_vector(mean), from_vector(rstd)};
  // Rounded to bf16 once; before that f32 sums of c terms, which shift the mean and scale rows of size 1.
  ladder.relative = 0x1p-8 + double(c) * 0x1p-23;
  ladder.absolute = 8 * double(c) * 0x1p-24;
  ladder.cost = {8.0 * double(x.numel()), 4 * 2.0 * double(x.numel())};
  using Kernel = void (*)(const kernels::LayerNormForward<bf16>&, void*);
  auto step = [&](const char* name, const char* idea, Kernel kernel) {
    ladder.steps.push_back(
        {name, idea,
         [kernel, rows, c, eps](const std::vector<Tensor>& in, const std::vector<Tensor>& out, void* stream) {
           kernels::LayerNormForward<bf16> a{.rows = rows, .c = c, .eps = eps};
           a.x = in[0].data<bf16>(), a.branch = in[1].data<bf16>();
           a.weight = in[2].data<bf16>(), a.bias = in[3].data<bf16>();
           a.sum = out[0].data<bf16>(), a.y = out[1].data<bf16>();
           a.mean = out[2].data<float>(), a.rstd = out[3].data<float>();
           kernel(a, stream);
         }});
  };
  step("v1_naive", "the sum, then a thread a row", kernels::ladder::layer_norm_v1_naive);
  step("v2_warp", "a warp a row, joined by shuffles", kernels::ladder::layer_norm_v2_warp);
  step("v3_fused", "the sum in the same kernel", kernels::ladder::layer_norm_v3_fused);
  step("v4_registers", "16-byte loads, the row in registers: one pass",
       kernels::ladder::layer_norm_v4_registers);
  step("v5_shipped", "the op's own kernel, for rows of any length", kernels::layer_norm_fwd<bf16>);
  return ladder;
}
