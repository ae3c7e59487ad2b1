// grid_tokens and the grouped product behind it in one launch. A block has 16 tokens, a head and 64 of its
// outputs: it gathers the tokens' states of both sets, means of prefix tokens made on the way, and multiplies
// by mma.sync; a warp has 16 outputs. Both operands are read in pieces of 16 bytes: a lane holds columns 16 q
// to 16 q + 15 of 64, as mma.sync's columns 2q, 2q+1, 2q+8 and 2q+9 of four products, since sums may be taken
// in any order.
#include "core/cuda/launch.h"
#include "core/cuda/mma.cuh"
#include "core/cuda/vec.cuh"
#include "ops/grid_lines/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kTokens = 16, kWarps = 4, kThreads = 32 * kWarps, kOutputs = 16 * kWarps;
constexpr int kLineParts = 4;  // neighbouring lanes that share a mean's lines

__global__ void __launch_bounds__(kThreads) grid_project_kernel(GridProject a) {
  constexpr int kSets = 2, kStates = 128, kColumns = kStates * kSets, kPitch = kColumns + 8,
                kPacks = kColumns / 8;
  __shared__ __align__(16) bf16 rows[kTokens * kPitch];
  const LinesShape& s = a.s;
  const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const int64_t head = blockIdx.y, first = int64_t(blockIdx.x) * kTokens, all = s.b * s.tokens();
  const int64_t output = int64_t(blockIdx.z) * kOutputs + int64_t(threadIdx.x) / 32 * 16;

  // Where each token's states of either set are for this head, counted in numbers; of a prefix token in line
  // 0.
  __shared__ int64_t places[kSets][kTokens];
  __shared__ bool is_prefix[kTokens];
  if (threadIdx.x < kTokens && first + threadIdx.x < all) {
    const int64_t at = first + threadIdx.x, image = at / s.tokens(), token = at % s.tokens();
    is_prefix[threadIdx.x] = token < s.prefix;
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int64_t row = token < s.prefix ? token : s.row(set, token - s.prefix);
      places[set][threadIdx.x] =
          ((image * s.lines() * s.length() + row) * kSets * s.h + set * s.h + head) * kStates;
    }
  }
  uint4 w[2][kColumns / 64][2];
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int k = 0; k < kColumns / 64; ++k)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        w[n][k][half] = *reinterpret_cast<const uint4*>(
            a.w + (head * a.outputs + output + 8 * n + g) * kColumns + 64 * k + 16 * q + 8 * half);

  __syncthreads();
  const int count = int(all - first < kTokens ? all - first : kTokens);
#pragma unroll 4
  for (int e = int(threadIdx.x); e < kTokens * kPacks; e += kThreads) {
    const int row = e / kPacks, column = e % kPacks * 8;
    if (row < count && is_prefix[row]) continue;
    const uint4 none = make_uint4(0, 0, 0, 0);
    *reinterpret_cast<uint4*>(rows + row * kPitch + column) =
        row < count
            ? *reinterpret_cast<const uint4*>(a.lines + places[column / kStates][row] + column % kStates)
            : none;
  }
  const int64_t line_step = s.length() * kSets * s.h * kStates;
  for (int row = 0; row < count; ++row) {
    if (!is_prefix[row]) continue;
    for (int e = int(threadIdx.x); e < kPacks * kLineParts; e += kThreads) {
      const int column = e / kLineParts * 8;
      const bf16* from = a.lines + places[column / kStates][row] + column % kStates;
      float sum[8] = {}, v[8];
#pragma unroll 4
      for (int64_t line = e % kLineParts; line < s.lines(); line += kLineParts) {
        load_acc(from + line * line_step, v);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] += v[j];
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int mask = 1; mask < kLineParts; mask *= 2) sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], mask);
        sum[j] /= float(s.lines());
      }
      if (e % kLineParts == 0) store_acc(rows + row * kPitch + column, sum);
    }
  }
  __syncthreads();

  float d[2][4];
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      d[n][j] = a.bias == nullptr ? 0 : float(a.bias[head * a.outputs + output + 8 * n + 2 * q + j % 2]);
#pragma unroll
  for (int k = 0; k < kColumns / 64; ++k)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = 64 * k + 16 * q + 8 * half;
      const uint4 top = *reinterpret_cast<const uint4*>(rows + g * kPitch + column),
                  low = *reinterpret_cast<const uint4*>(rows + (g + 8) * kPitch + column);
      const uint32_t left[4] = {top.x, low.x, top.y, low.y}, right[4] = {top.z, low.z, top.w, low.w};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        mma_bf16(d[n], left, w[n][k][half].x, w[n][k][half].y);
        mma_bf16(d[n], right, w[n][k][half].z, w[n][k][half].w);
      }
    }
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (const int64_t at = first + g + 8 * half; at < all)
        *reinterpret_cast<uint32_t*>(a.heads + (at * s.h + head) * a.outputs + output + 8 * n + 2 * q) =
            pack_bf16(d[n][2 * half], d[n][2 * half + 1]);
}

}  // namespace

bool grid_project_fits(const GridProject& a) {
  return a.s.sets == 2 && a.s.q == 128 && a.outputs > 0 && a.outputs % kOutputs == 0 && a.s.h <= 65535 &&
         a.outputs / kOutputs <= 65535 && aligned16(a.lines, a.w, a.heads) &&
         device_limits().capability >= 80;
}

void grid_project(const GridProject& a, void* stream) {
  const dim3 grid(grid_of_blocks(div_up<int64_t>(a.s.b * a.s.tokens(), kTokens)), unsigned(a.s.h),
                  unsigned(a.outputs / kOutputs));
  grid_project_kernel<<<grid, kThreads, 0, as_stream(stream)>>>(a);
  check_launch("grid_project", stream);
}

}  // namespace occam::kernels
