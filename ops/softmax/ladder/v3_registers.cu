// 16-byte loads into registers: memory is read once and each exponential is computed once.
#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"
#include "ops/softmax/ladder/ladder.h"

namespace occam::kernels::ladder {

using namespace cuda;

namespace {
constexpr int kRows = 4;  // warps of a block

/// A lane holds kPacks packs of its row: n <= 256 kPacks.
template <int kPacks>
__global__ void row_in_registers(const bf16* x, bf16* y, int64_t rows, int n) {
  constexpr int kWide = kPack<bf16>;
  const int lane = int(threadIdx.x) % kWarp;
  for (int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / kWarp; row < rows;
       row += int64_t(gridDim.x) * kRows) {
    float v[kPacks][kWide], largest = -infinity_<float>(), sum = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = (p * kWarp + lane) * kWide;
      if (at < n) {
        load_acc(x + row * n + at, v[p]);
      } else {
#pragma unroll
        for (int j = 0; j < kWide; ++j) v[p][j] = -infinity_<float>();
      }
#pragma unroll
      for (int j = 0; j < kWide; ++j) largest = max_(largest, v[p][j]);
    }
    largest = warp_max(largest);
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
#pragma unroll
      for (int j = 0; j < kWide; ++j) sum += v[p][j] = exp_(v[p][j] - largest);
    const float scale = 1 / warp_sum(sum);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = (p * kWarp + lane) * kWide;
#pragma unroll
      for (int j = 0; j < kWide; ++j) v[p][j] *= scale;
      if (at < n) store_acc(y + row * n + at, v[p]);
    }
  }
}
}  // namespace

void softmax_v3_registers(const bf16* x, bf16* y, int64_t rows, int64_t n, void* stream) {
  const unsigned blocks = grid_of_rows(div_up<int64_t>(rows, kRows));
  if (n <= 256) {
    row_in_registers<1><<<blocks, kRows * kWarp, 0, as_stream(stream)>>>(x, y, rows, int(n));
  } else {
    row_in_registers<4><<<blocks, kRows * kWarp, 0, as_stream(stream)>>>(x, y, rows, int(n));
  }
  check_launch("softmax_v3_registers", stream);
}

}  // namespace occam::kernels::ladder
