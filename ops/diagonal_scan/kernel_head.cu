// Gates by tensor cores and the scan of what they give, without gates in memory. A block is a (head,
// direction) and four units (head.cuh); its four warps have 16 channels each, and W stays in registers.
#include "core/cuda/launch.h"
#include "ops/diagonal_scan/head.cuh"
#include "ops/diagonal_scan/kernel.h"

namespace occam::kernels {

namespace {

constexpr int kThreads = 128;

/// Unit u is a segment of an image: positions [first, first + length), length 0 when there is no such unit.
struct Unit {
  int64_t image, first;
  int segment, length;
};

/// kTiles: products, of two positions each, whose gates are in registers together. kSums: only what segments
/// leave for each other is computed, not y.
template <class Cell, int kTiles, int kBlocks, bool kSums>
__global__ void __launch_bounds__(kThreads, kBlocks)
    head_scan_fwd_mma(HeadScan a, Segments segments, SegmentSums sums) {
  extern __shared__ __align__(128) uint8_t stages[];
  constexpr int kParts = Cell::kParts;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const unsigned heads = unsigned(a.s.h), count = unsigned(segments.count);
  const unsigned group = blockIdx.x / (2 * heads), place = blockIdx.x - group * 2 * heads;
  const int direction = int(place % 2), head = int(place / 2);
  const int64_t row_step =
      direction == 0 ? a.s.h * kWidth : -a.s.h * kWidth;  // of x from position to position
  // Offset in x of a position of an image.
  auto x_at = [&](const Unit& unit, int64_t position) {
    return ((unit.image * a.s.t + (direction == 0 ? 0 : a.s.t - 1)) * a.s.h + head) * kWidth +
           position * row_step;
  };

  // The block's units one after another; the thread's own two are picked on the way: `mine` in the scan,
  // `out` when it stores. It copies 16 bytes of one position of each unit.
  const int copy_position = int(threadIdx.x) / 8, copy_bytes16 = int(threadIdx.x) % 8;
  const bf16* from[kUnits];
  int left[kUnits];  // positions of the unit from copy_position on
  Unit unit{int64_t(group * kUnits / count), 0, int(group * kUnits % count), 0}, mine, out;
  int longest = 0;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    unit.first = unit.segment * segments.length;
    unit.length = unit.image < a.s.b ? int(min(segments.length, a.s.t - unit.first)) : 0;
    if (lane % 4 == u) mine = unit;
    if (lane / 8 == u) out = unit;
    from[u] = a.x + x_at(unit, unit.first + copy_position) + copy_bytes16 * 8;
    left[u] = unit.length - copy_position;
    longest = max(longest, unit.length);
    if (++unit.segment == int(count)) unit.segment = 0, ++unit.image;
  }
  const int steps = (longest + kPositions - 1) / kPositions;
  // Stages are asked for one after another.
  uint8_t* const copied = stages + copy_position * 128 +
                          ((copy_bytes16 ^ copy_position % 2) << 4);  // of unit 0, whose key is 0 or 1
  auto copy_stage = [&](int step) {
    uint8_t* to = copied + step % kStages * kStageBytes;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      // Key 2 u + parity: the difference to unit 0's is 2 u in bits that parity does not touch.
      uint8_t* place16 = reinterpret_cast<uint8_t*>(reinterpret_cast<uintptr_t>(to) ^ (2 * u << 4));
      copy_async16(place16 + u * kPositions * 128, left[u] > 0 ? from[u] : a.x, left[u] > 0);
      from[u] += kPositions * row_step;
      left[u] -= kPositions;
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
    bias[i][0] = to_acc(a.bias[row + channel[0]]), bias[i][1] = to_acc(a.bias[row + channel[1]]);
    load_left(weight[i], a.weight + (row + warp * 16) * kWidth, kWidth);
  }

  // The states of the lane's two channels.
  const int64_t chains = a.s.chains();
  const int64_t chain = ((mine.image * a.s.h + head) * 2 + direction) * kWidth;
  float h[2] = {}, product[2] = {1, 1};
  if (!kSums && mine.length > 0)
#pragma unroll 1
    for (int k = 0; k < mine.segment; ++k)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t i = k * chains + chain + channel[c];
        h[c] = sums.product[i] * h[c] + sums.state[i];
      }
  // What it stores: four channels of position (lane / 4) % 2 of every two of `out`.
  const int out_parity = lane / 4 % 2;
  bf16* y = a.y + 2 * x_at(out, out.first + out_parity) + direction * kWidth + warp * 16 + 4 * (lane % 4);
  int out_left = out.length - out_parity;

  for (int step = 0; step < steps; ++step) {
    copies_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) copy_stage(step + kStages - 1);
    copies_commit();
    const uint8_t* stage = stages + step % kStages * kStageBytes;
#pragma unroll
    for (int part = 0; part < kPositions / 2 / kTiles; ++part) {
      float gate[kTiles][kParts][4];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) gates_of_columns(gate[j], stage, part * kTiles + j, weight, bias);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        float state[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float v[3];
#pragma unroll
          for (int i = 0; i < kParts; ++i) v[i] = gate[j][i][e];
          const float keep = Cell::template step<true>(v, h[e / 2]);
          if (kSums) product[e / 2] *= keep;
          state[e] = h[e / 2];
        }
        if (kSums) continue;
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
  if (kSums && mine.length > 0)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int64_t i = mine.segment * chains + chain + channel[c];
      sums.product[i] = product[c], sums.state[i] = h[c];
    }
}

int64_t blocks_of(const DiagonalScanShape& s, int64_t segments) {
  return s.h * 2 * div_up<int64_t>(s.b * segments, kUnits);
}

/// Four blocks fit on a multiprocessor.
Segments segments_of(const DiagonalScanShape& s) {
  const int64_t multiprocessors = device_limits().sm_count;
  if (blocks_of(s, 1) >= multiprocessors) return {1, s.t};
  return cut(s.t, s.b * s.h * 2, 2 * multiprocessors * kUnits, kPositions);
}

template <class Cell>
void launch(const HeadScan& a, float* workspace, void* stream) {
  constexpr int kTiles = Cell::kParts == 2 ? 4 : 2, kBytes = kStages * kStageBytes;
  const Segments segments = segments_of(a.s);
  const SegmentSums sums{workspace, workspace + segments.count * a.s.chains()};
  const unsigned blocks = grid_of_blocks(blocks_of(a.s, segments.count));
  if (segments.count > 1) {
    head_scan_fwd_mma<Cell, kTiles, 3, true>
        <<<blocks, kThreads, kBytes, as_stream(stream)>>>(a, segments, sums);
    check_launch("head_scan_fwd_mma", stream);
  }
  head_scan_fwd_mma<Cell, kTiles, 3, false>
      <<<blocks, kThreads, kBytes, as_stream(stream)>>>(a, segments, sums);
  check_launch("head_scan_fwd_mma", stream);
}

}  // namespace

bool head_scan_fits(const HeadScan& a) {
  return device_limits().capability >= 80 && a.cell != Cell::plain && a.s.w == kWidth &&
         a.s.chains() * a.s.t < int64_t(1) << 40 && aligned16(a.x, a.weight, a.bias, a.y);
}

int64_t head_scan_workspace(const DiagonalScanShape& s) {
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
