// 16-byte loads and the row in registers: what a lane needs next is on its way before it is needed, and
// nothing is read twice.
// For rows of a multiple of 8, at most 1024.
#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec.cuh"
#include "ops/layer_norm/ladder/ladder.h"

namespace occam::kernels::ladder {

using namespace cuda;

namespace {
constexpr int kRows = 4;  // warps of a block

/// A lane holds kPacks packs of its row: c <= 256 kPacks.
template <int kPacks>
__global__ void add_and_norm_in_registers(LayerNorm a) {
  constexpr int kWide = kPack<bf16>;
  const int lane = int(threadIdx.x) % kWarp, c = int(a.c);
  for (int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / kWarp; row < a.rows;
       row += int64_t(gridDim.x) * kRows) {
    float v[kPacks][kWide] = {}, add[kPacks][kWide] = {}, sum = 0, squares = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
      if (const int at = (p * kWarp + lane) * kWide; at < c) {
        load_acc(a.x + row * c + at, v[p]);
        load_acc(a.branch + row * c + at, add[p]);
      }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) sum += v[p][j] = to_acc(from_acc<bf16>(v[p][j] + add[p][j]));
      if (const int at = (p * kWarp + lane) * kWide; at < c) store_acc(a.sum + row * c + at, v[p]);
    }
    const float m = warp_sum(sum) / float(c);
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
      if ((p * kWarp + lane) * kWide < c) {
#pragma unroll
        for (int j = 0; j < kWide; ++j) squares += (v[p][j] - m) * (v[p][j] - m);
      }
    const float r = 1 / sqrtf(warp_sum(squares) / float(c) + a.eps);
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
      if (const int at = (p * kWarp + lane) * kWide; at < c) {
        float w[kWide], b[kWide];
        load_acc(a.weight + at, w);
        load_acc(a.bias + at, b);
#pragma unroll
        for (int j = 0; j < kWide; ++j) v[p][j] = (v[p][j] - m) * r * w[j] + b[j];
        store_acc(a.y + row * c + at, v[p]);
      }
    if (lane == 0) a.mean[row] = m, a.rstd[row] = r;
  }
}
}  // namespace

void layer_norm_v4_registers(const LayerNorm& a, void* stream) {
  const unsigned blocks = grid_of_rows(div_up<int64_t>(a.rows, kRows));
  if (a.c <= 512) {
    add_and_norm_in_registers<2><<<blocks, kRows * kWarp, 0, as_stream(stream)>>>(a);
  } else {
    add_and_norm_in_registers<4><<<blocks, kRows * kWarp, 0, as_stream(stream)>>>(a);
  }
  check_launch("layer_norm_v4_registers", stream);
}

}  // namespace occam::kernels::ladder
