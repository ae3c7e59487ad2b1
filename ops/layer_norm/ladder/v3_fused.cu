// The warp that normalises a row adds it first: the sum is written but comes back from L1, not from memory.
#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "ops/layer_norm/ladder/ladder.h"

namespace occam::kernels::ladder {

using namespace cuda;

namespace {
constexpr int kRows = 4;  // warps of a block

__global__ void add_and_norm(LayerNorm a) {
  const int lane = int(threadIdx.x) % kWarp;
  for (int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / kWarp; row < a.rows;
       row += int64_t(gridDim.x) * kRows) {
    bf16* in = a.sum + row * a.c;  // each lane reads what it wrote
    float sum = 0, squares = 0;
    for (int64_t i = lane; i < a.c; i += kWarp) {
      in[i] = from_acc<bf16>(to_acc(a.x[row * a.c + i]) + to_acc(a.branch[row * a.c + i]));
      sum += to_acc(in[i]);
    }
    const float m = warp_sum(sum) / float(a.c);
    for (int64_t i = lane; i < a.c; i += kWarp) squares += (to_acc(in[i]) - m) * (to_acc(in[i]) - m);
    const float r = 1 / sqrtf(warp_sum(squares) / float(a.c) + a.eps);
    for (int64_t i = lane; i < a.c; i += kWarp)
      a.y[row * a.c + i] = from_acc<bf16>((to_acc(in[i]) - m) * r * to_acc(a.weight[i]) + to_acc(a.bias[i]));
    if (lane == 0) a.mean[row] = m, a.rstd[row] = r;
  }
}
}  // namespace

void layer_norm_v3_fused(const LayerNorm& a, void* stream) {
  add_and_norm<<<grid_of_rows(div_up<int64_t>(a.rows, kRows)), kRows * kWarp, 0, as_stream(stream)>>>(a);
  check_launch("layer_norm_v3_fused", stream);
}

}  // namespace occam::kernels::ladder
