#include "ops/softmax/ladder/ladder.h"

#include "core/grad_mode.h"
#include "core/rng.h"
#include "ops/ladder.h"
#include "ops/softmax/kernel.h"
#include "ops/softmax/op.h"

OCCAM_LADDER(softmax) {
  using namespace occam;
  // The scores of 64 images in DeiT-Small, padded to whole packs: 58 MB in and out, so more than the L2
  // cache.
  const int64_t rows = 64 * 6 * 197, n = 200;
  NoGrad no_grad;
  Rng rng(0, "ladder.softmax");
  const Tensor x = raw::to(rand_normal({rows, n}, 0, 2, rng), DType::bf16);
  Ladder ladder;
  ladder.op = "softmax";
  ladder.shape = x.shape().str() + " bf16";
  ladder.inputs = {raw::to(x, device)};
  ladder.outputs = {empty_like(ladder.inputs[0])};
  ladder.expected = {softmax(raw::to(x, DType::f64))};
  // Rounded to bf16 once (2^-8); before that f32, with sums of n terms.
  ladder.relative = 0x1p-8 + double(n) * 0x1p-23;
  ladder.absolute = 1e-30;
  ladder.cost = {5.0 * double(x.numel()), 2.0 * 2.0 * double(x.numel())};
  using Kernel = void (*)(const bf16*, bf16*, int64_t, int64_t, void*);
  auto step = [&](const char* name, const char* idea, Kernel kernel) {
    ladder.steps.push_back(
        {name, idea,
         [kernel, rows, n](const std::vector<Tensor>& in, const std::vector<Tensor>& out, void* stream) {
           kernel(in[0].data<bf16>(), out[0].data<bf16>(), rows, n, stream);
         }});
  };
  step("v1_naive", "a thread a row", kernels::ladder::softmax_v1_naive);
  step("v2_warp", "a warp a row, joined by shuffles", kernels::ladder::softmax_v2_warp);
  step("v3_registers", "16-byte loads, the row in registers: one pass",
       kernels::ladder::softmax_v3_registers);
  step("v4_shipped", "the op's own kernel: v3 for rows of any length and alignment",
       kernels::softmax_fwd<bf16>);
  return ladder;
}
