// Gates by tensor cores and the scan of what they give, without gates in memory. A block is a (head,
// direction) and four units, a unit being an image or a segment of one; its four warps have 16 channels each.
// The product is transposed, gates = W x': rows are channels, and the two columns that a lane holds of every
// 8 are two neighbouring positions of one unit, so that a lane walks along the tokens of its unit by itself:
// column 2u + e of product j is position 2j + e of unit u. W stays in registers.
#include "core/cuda/launch.h"
#include "ops/diagonal_scan/cells.cuh"
#include "ops/diagonal_scan/kernel.h"

namespace occam::kernels {

namespace {

constexpr int kWidth = 64, kThreads = 128, kUnits = 4;
constexpr int kPositions = 16;  // of every unit in a stage
constexpr int kStages = 4;
constexpr int kStageBytes = kUnits * kPositions * kWidth * 2;

/// Row r of a warp's 16 is this channel: after the transposition that a lane stores from, four neighbours.
__device__ __forceinline__ int channel_of_row(int r) { return (r & 7) / 2 * 4 + (r & 1) + (r & 8) / 4; }

/// Lane l of the result holds elements [l / 4][2 (l % 4)] and the next of the transposed 8 x 8 matrix.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

struct Unit {
  int64_t image, segment, first, length;  // positions [first, first + length) of the image; length 0: none
};
__device__ __forceinline__ Unit unit_of(int64_t u, const ScanShape& s, const Segments& segments) {
  Unit unit{u / segments.count, u % segments.count, 0, 0};
  unit.first = unit.segment * segments.length;
  if (unit.image < s.b) unit.length = min(segments.length, s.t - unit.first);
  return unit;
}

/// kTiles: products, of two positions each, whose gates are in registers together.
template <class Cell, int kTiles, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    head_scan_fwd_mma(HeadScan a, Segments segments, SegmentSums sums, bool sums_only) {
  extern __shared__ __align__(128) uint8_t stages[];
  constexpr int kParts = Cell::kParts;
  const int64_t direction = blockIdx.x % 2, head = blockIdx.x / 2 % a.s.h, group = blockIdx.x / 2 / a.s.h;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t row_step =
      direction == 0 ? a.s.h * kWidth : -a.s.h * kWidth;  // of x from position to position

  // What the thread copies: 16 bytes of one position of each unit.
  const int copy_position = int(threadIdx.x) / 8, copy_unit16 = int(threadIdx.x) % 8;
  const bf16* from[kUnits];
  int left[kUnits];  // positions of the unit from copy_position on
  int64_t longest = 0;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const Unit unit = unit_of(group * kUnits + u, a.s, segments);
    const int64_t position = unit.first + copy_position;
    const int64_t token = direction == 0 ? position : a.s.t - 1 - position;
    from[u] = a.x + ((unit.image * a.s.t + token) * a.s.h + head) * kWidth + copy_unit16 * 8;
    left[u] = int(unit.length) - copy_position;
    longest = max(longest, unit.length);
  }
  const int steps = int((longest + kPositions - 1) / kPositions);
  auto copy_stage = [&](int step) {
    uint8_t* stage = stages + step % kStages * kStageBytes;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const bool valid = left[u] > step * kPositions;
      const int key = 2 * u + copy_position % 2;
      copy_async16(stage + (u * kPositions + copy_position) * 128 + ((copy_unit16 ^ key) << 4),
                   valid ? from[u] + int64_t(step) * kPositions * row_step : a.x, valid);
    }
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < steps) copy_stage(i);
    copies_commit();
  }

  // Weights of the warp's 16 channels as left operands, biases of the lane's two rows.
  uint32_t weight[kParts][4][4];
  float bias[kParts][2];
  const int channel[2] = {warp * 16 + channel_of_row(lane / 4), warp * 16 + channel_of_row(lane / 4 + 8)};
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int64_t row = ((direction * a.s.h + head) * kParts + i) * kWidth;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      bias[i][c] = to_acc(a.bias[row + channel[c]]);
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          weight[i][k][2 * half + c] = *reinterpret_cast<const uint32_t*>(
              a.weight + (row + channel[c]) * kWidth + 16 * k + 8 * half + 2 * (lane % 4));
    }
  }

  // The lane's unit in the scan, and the state of its two channels.
  const int64_t chains = a.s.chains();
  const Unit mine = unit_of(group * kUnits + lane % 4, a.s, segments);
  const int64_t chain = ((mine.image * a.s.h + head) * 2 + direction) * kWidth;
  float h[2] = {}, product[2] = {1, 1};
  if (!sums_only && mine.length > 0)
    for (int64_t k = 0; k < mine.segment; ++k)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t i = k * chains + chain + channel[c];
        h[c] = sums.product[i] * h[c] + sums.state[i];
      }
  // What it stores: four channels of position (lane / 4) % 2 of every two of unit lane / 8.
  const Unit out = unit_of(group * kUnits + lane / 8, a.s, segments);
  const int64_t out_position = out.first + lane / 4 % 2;
  const int64_t out_token = direction == 0 ? out_position : a.s.t - 1 - out_position;
  bf16* y = a.y + ((out.image * a.s.t + out_token) * a.s.h + head) * 2 * kWidth + direction * kWidth +
            warp * 16 + 4 * (lane % 4);
  int out_left = int(out.length) - lane / 4 % 2;

  for (int step = 0; step < steps; ++step) {
    copies_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) copy_stage(step + kStages - 1);
    copies_commit();
    const uint8_t* stage = stages + step % kStages * kStageBytes;
    const uint8_t* column = stage + (lane % 8 / 2 * kPositions + lane % 2) * 128;
#pragma unroll
    for (int part = 0; part < kPositions / 2 / kTiles; ++part) {
      float gate[kParts][kTiles][4];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int i = 0; i < kParts; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e) gate[i][j][e] = bias[i][e / 2];
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
          uint32_t x[4];
          ldmatrix(x, reinterpret_cast<const bf16*>(column + (part * kTiles + j) * 256 +
                                                    (((2 * k + lane / 8) ^ (lane % 8)) << 4)));
#pragma unroll
          for (int i = 0; i < kParts; ++i) {
            mma_bf16(gate[i][j], weight[i][k], x[0], x[1]);
            mma_bf16(gate[i][j], weight[i][k + 1], x[2], x[3]);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        float state[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float v[3], keep, add;
#pragma unroll
          for (int i = 0; i < kParts; ++i) v[i] = gate[i][j][e];
          Cell::template forward<true>(v, keep, add);
          h[e / 2] = keep * h[e / 2] + add;
          product[e / 2] *= keep;
          state[e] = h[e / 2];
        }
        if (sums_only) continue;
        uint2 four;
        four.x = transposed(pack_bf16(state[0], state[1]));
        four.y = transposed(pack_bf16(state[2], state[3]));
        if (out_left > 0) *reinterpret_cast<uint2*>(y) = four;
        y += 4 * row_step;  // two positions of y, whose rows are twice as long
        out_left -= 2;
      }
    }
  }
  // Only the last segment of an image may be shorter than its stages, and nothing follows it.
  if (sums_only && mine.length > 0)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int64_t i = mine.segment * chains + chain + channel[c];
      sums.product[i] = product[c], sums.state[i] = h[c];
    }
}

int64_t blocks_of(const ScanShape& s, int64_t segments) {
  return s.h * 2 * div_up<int64_t>(s.b * segments, kUnits);
}

/// Four blocks fit on a multiprocessor.
Segments segments_of(const ScanShape& s) {
  const int64_t multiprocessors = device_limits().sm_count;
  if (blocks_of(s, 1) >= multiprocessors) return {1, s.t};
  return cut(s.t, s.b * s.h * 2, 2 * multiprocessors * kUnits, kPositions);
}

template <class Cell>
void launch(const HeadScan& a, float* workspace, void* stream) {
  const Segments segments = segments_of(a.s);
  const int64_t sum_count = segments.count * a.s.chains();
  auto kernel = head_scan_fwd_mma < Cell, Cell::kParts == 2 ? 4 : 2, 4 > ;
  allow_shared(kernel, "head_scan_fwd_mma", kStages * kStageBytes);
  for (bool sums_only : {true, false}) {
    if (sums_only && segments.count == 1) continue;
    kernel<<<unsigned(blocks_of(a.s, segments.count)), kThreads, kStages * kStageBytes, as_stream(stream)>>>(
        a, segments, SegmentSums{workspace, workspace + sum_count}, sums_only);
    check_launch("head_scan_fwd_mma", stream);
  }
}

}  // namespace

bool head_scan_fits(const HeadScan& a) {
  return device_limits().capability >= 80 && a.cell != Cell::plain && a.s.w == kWidth &&
         aligned16(a.x, a.weight, a.bias, a.y);
}

int64_t head_scan_workspace(const ScanShape& s) {
  const Segments segments = segments_of(s);
  return segments.count > 1 ? 2 * segments.count * s.chains() : 0;
}

void head_scan_fwd(const HeadScan& a, float* workspace, void* stream) {
  if (a.cell == Cell::min_gru)
    launch<MinGruCell>(a, workspace, stream);
  else
    launch<MinLstmCell>(a, workspace, stream);
}

}  // namespace occam::kernels
