// A warp a row: neighbouring lanes read neighbouring elements, and shuffles join their maxima and sums.
#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "ops/softmax/ladder/ladder.h"

namespace occam::kernels::ladder {

using namespace cuda;

namespace {
constexpr int kRows = 4;  // warps of a block

__global__ void row_by_warp(const bf16* x, bf16* y, int64_t rows, int64_t n) {
  const int lane = int(threadIdx.x) % kWarp;
  for (int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / kWarp; row < rows;
       row += int64_t(gridDim.x) * kRows) {
    const bf16* in = x + row * n;
    bf16* out = y + row * n;
    float largest = -infinity_<float>(), sum = 0;
    for (int64_t i = lane; i < n; i += kWarp) largest = max_(largest, to_acc(in[i]));
    largest = warp_max(largest);
    for (int64_t i = lane; i < n; i += kWarp) sum += exp_(to_acc(in[i]) - largest);
    const float scale = 1 / warp_sum(sum);
    for (int64_t i = lane; i < n; i += kWarp) out[i] = from_acc<bf16>(exp_(to_acc(in[i]) - largest) * scale);
  }
}
}  // namespace

void softmax_v2_warp(const bf16* x, bf16* y, int64_t rows, int64_t n, void* stream) {
  row_by_warp<<<grid_of_rows(div_up<int64_t>(rows, kRows)), kRows * kWarp, 0, as_stream(stream)>>>(x, y, rows,
                                                                                                   n);
  check_launch("softmax_v2_warp", stream);
}

}  // namespace occam::kernels::ladder
