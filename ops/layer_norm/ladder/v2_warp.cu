// A warp a row: neighbouring lanes read neighbouring elements, shuffles join their sums; the sum of x and
// branch is still written by one kernel and read by the next.
#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "ops/layer_norm/ladder/ladder.h"

namespace occam::kernels::ladder {

using namespace cuda;

namespace {
constexpr int kRows = 4;  // warps of a block

__global__ void norm_by_warp(LayerNorm a) {
  const int lane = int(threadIdx.x) % kWarp;
  for (int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / kWarp; row < a.rows;
       row += int64_t(gridDim.x) * kRows) {
    const bf16* in = a.sum + row * a.c;
    float sum = 0, squares = 0;
    for (int64_t i = lane; i < a.c; i += kWarp) sum += to_acc(in[i]);
    const float m = warp_sum(sum) / float(a.c);
    for (int64_t i = lane; i < a.c; i += kWarp) squares += (to_acc(in[i]) - m) * (to_acc(in[i]) - m);
    const float r = 1 / sqrtf(warp_sum(squares) / float(a.c) + a.eps);
    for (int64_t i = lane; i < a.c; i += kWarp)
      a.y[row * a.c + i] = from_acc<bf16>((to_acc(in[i]) - m) * r * to_acc(a.weight[i]) + to_acc(a.bias[i]));
    if (lane == 0) a.mean[row] = m, a.rstd[row] = r;
  }
}
}  // namespace

void layer_norm_v2_warp(const LayerNorm& a, void* stream) {
  layer_norm_sum(a, stream);
  norm_by_warp<<<grid_of_rows(div_up<int64_t>(a.rows, kRows)), kRows * kWarp, 0, as_stream(stream)>>>(a);
  check_launch("layer_norm_v2_warp", stream);
}

}  // namespace occam::kernels::ladder
