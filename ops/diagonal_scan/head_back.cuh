#pragma once
// What the warpgroups of a block of head_scan_bwd_kernel do (kernel_head_bwd.cu).
#include "ops/diagonal_scan/head.cuh"

namespace occam::kernels {

namespace {

constexpr int kScanners = 3;  // warpgroups that scan
constexpr int kThreads = (kScanners + 1) * kGroup;
constexpr int kInputs = 4;  // stages of x: two under way, that of the scan and that of the products
constexpr int kStates = 3;  // of gy and of y
constexpr int kShares = 3;  // of dx

template <class Cell>
constexpr int kOwnTiles = kInputs + 2 * kStates + kShares + Cell::kParts;  // of a scanning warpgroup
template <class Cell>
constexpr int kBarriers = Cell::kParts* kLeft + kScanners* kOwnTiles<Cell>* kTile;  // where they lie
template <class Cell>
constexpr int kSums = kBarriers<Cell> + kScanners * 2 * 8;  // and the biases' gradients
template <class Cell>
constexpr int kBytes = kSums<Cell> + kScanners* Cell::kParts* kWidth * 4;

/// A phase: direction 0 has the groups of four units [0, half), direction 1 those from there, or the reverse.
struct Phase {
  unsigned half = 0, groups = 0, places = 0;
  bool second = false;
};

#ifdef OCCAM_WARPGROUP

/// Scans the positions of a stage, `left` of which there are (kWhole: all): `gate` becomes the gradients of
/// the gates; d is what comes to the lane's two channels from the step after, a dh. `gy` and `y` are the
/// lane's columns of their tiles.
template <class Cell, bool kSumsOnly, bool kWhole = false>
__device__ __forceinline__ void scan_stage(const Cell& cell, float (&gate)[Cell::kParts][16], uint32_t gy,
                                           uint32_t y, int left, float (&d)[2], float (&product)[2],
                                           float (&g_bias)[Cell::kParts][2]) {
  constexpr int kParts = Cell::kParts;
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    uint32_t g_state[4], state[4] = {};
    ldmatrix_transposed_at(g_state, gy + pair * kPair);
    if (!kSumsOnly) ldmatrix_transposed_at(state, y + pair * kPair);
#pragma unroll
    for (int n = 0; n < 4; ++n) {  // positions
      const int at = 8 * pair + n / 2 * 4 + n % 2;
      const bool valid = kWhole || pair * 4 + n < left;
      float p[3][2], dh[2], before[2], keep[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const uint32_t g = g_state[n / 2 * 2 + c], h = state[n / 2 * 2 + c];
        dh[c] = valid ? (n % 2 == 0 ? low(g) : high(g)) + d[c] : 0.0f;
        before[c] = n % 2 == 0 ? low(h) : high(h);
#pragma unroll
        for (int i = 0; i < kParts; ++i) p[i][c] = gate[i][at + 2 * c];
      }
      cell.backward(p, before, dh, keep);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (!kSumsOnly || valid) d[c] = keep[c] * dh[c], product[c] *= keep[c];
#pragma unroll
        for (int i = 0; i < kParts; ++i) gate[i][at + 2 * c] = p[i][c], g_bias[i][c] += p[i][c];
      }
    }
  }
}

/// Where a block of a phase works, and what its warpgroups share.
template <class Cell>
struct Block {
  static constexpr int kParts = Cell::kParts;
  int head, direction;
  unsigned place, begin, end, rounds;  // its first groups are begin + kScanners place ...
  int64_t which;
  uint32_t room;
  __device__ __forceinline__ Block(const HeadScanBackward& a, const Phase& phase, uint32_t shared)
      : room(shared) {
    const unsigned line = blockIdx.x / phase.places;
    place = blockIdx.x - line * phase.places;
    direction = int(line & 1), head = int(line / 2);
    which = direction * a.s.h + head;
    const bool first_half = (direction == 0) != phase.second;
    begin = first_half ? 0 : phase.half, end = first_half ? phase.half : phase.groups;
    rounds = (end - begin + kScanners * phase.places - 1) / (kScanners * phase.places);
  }
  /// Group of a warpgroup in a round.
  __device__ __forceinline__ unsigned group(const Phase& phase, unsigned round, int own) const {
    if (phase.second) round = rounds - 1 - round;  // what the first phase did last is in the cache
    return begin + (round * phase.places + place) * kScanners + unsigned(own);
  }
  /// Unit `u` of the round's 12, or none.
  __device__ __forceinline__ Unit unit(const HeadScanBackward& a, const Segments& segments,
                                       const Phase& phase, unsigned round, int u) const {
    const unsigned g = group(phase, round, u / kUnits);
    return unit_of(a.s, segments, g < end ? g * kUnits + u % kUnits : unsigned(a.s.b * segments.count));
  }
  /// Stages of a round, for all warpgroups.
  __device__ __forceinline__ int steps(const HeadScanBackward& a, const Segments& segments,
                                       const Phase& phase, unsigned round) const {
    const Unit u = unit(a, segments, phase, round, int(threadIdx.x) % 32 % (kScanners * kUnits));
    return (__reduce_max_sync(0xffffffffu, u.length) + kPositions - 1) / kPositions;
  }
  // Byte offsets of a warpgroup's tiles, of stage `count` of all that it has scanned.
  static __device__ __forceinline__ int tile(int own, int i) {
    return kParts * kLeft + (own * kOwnTiles<Cell> + i) * kTile;
  }
  static __device__ __forceinline__ int x(int own, unsigned count) { return tile(own, int(count % kInputs)); }
  static __device__ __forceinline__ int gy(int own, unsigned count) {
    return tile(own, kInputs + int(count % kStates) * 2);
  }
  static __device__ __forceinline__ int share(int own, unsigned count) {
    return tile(own, kInputs + 2 * kStates + int(count % kShares));
  }
  static __device__ __forceinline__ int gradient(int own) {
    return tile(own, kInputs + 2 * kStates + kShares);
  }
  /// Of a stage: its gradients are there; they were used, and its dx is there. Told by parity().
  __device__ __forceinline__ uint32_t made(int own) const { return room + kBarriers<Cell> + own * 16; }
  __device__ __forceinline__ uint32_t used(int own) const { return made(own) + 8; }
  static __device__ __forceinline__ uint32_t parity(unsigned count) { return count % 2; }
};

/// A warp's arrival for its lanes.
__device__ __forceinline__ void arrive_together(uint32_t barrier) {
  __syncwarp();
  if (int(threadIdx.x) % 32 == 0) barrier_arrive(barrier);
}

template <class Cell>
__device__ __forceinline__ void scan_units(const HeadScanBackward& a, const Segments& segments,
                                           const SegmentSums& sums, const Phase& phase,
                                           const Block<Cell>& block, uint8_t* shared, int own, int warp) {
  constexpr int kParts = Cell::kParts;
  using Places = Block<Cell>;
  const int lane = int(threadIdx.x) % 32, channel = warp * 16 + lane / 4, direction = block.direction;
  const uint32_t columns = block.room + columns_of(warp);
  const Copied copied;
  uint8_t* const mine_in = shared + swizzled(copied.row, copied.piece);  // of what it copies
  const int64_t chains = a.s.chains();
  const Cell cell = load_cell<Cell>(a.bias, block.which, channel);
  float g_bias[kParts][2] = {};
  unsigned count = 0;  // stages
  for (unsigned round = 0; round < block.rounds; ++round) {
    const Unit from = block.unit(a, segments, phase, round, own * kUnits + copied.unit),
               mine = block.unit(a, segments, phase, round, own * kUnits + lane % kUnits);
    const int steps = block.steps(a, segments, phase, round);
    const Walk walk(from, direction == 0);
    Rows x(a.x, walk, copied, a.s.h, block.head), gx(a.gx, walk, copied, a.s.h, block.head), other = gx;
    Rows gy(a.gy, walk, copied, 2 * a.s.h, 2 * block.head + direction);
    // States are those of the token before in the scan, of the unit before too.
    Rows y(a.y, walk, copied, 2 * a.s.h, 2 * block.head + direction);
    y.look_ahead(direction == 0 ? !from.first : !from.last);
    auto copy_stage = [&](unsigned stage) {
      x.load(mine_in + Places::x(own, stage));
      gy.load(mine_in + Places::gy(own, stage)), y.load(mine_in + Places::gy(own, stage) + kTile);
    };
    auto copy_share = [&](unsigned stage) {
      if (phase.second) other.load(mine_in + Places::share(own, stage));
      copies_commit();
    };
    /// When its products are made; then dx is there and the gradients' tiles are free.
    auto store_stage = [&](unsigned stage) {
      barrier_wait(block.used(own), Places::parity(stage));
      gx.store(mine_in + Places::share(own, stage));
    };
    copy_stage(count);
    copies_commit();
    copy_stage(count + 1);
    copy_share(count);

    const int64_t chain = ((mine.image * a.s.h + block.head) * 2 + direction) * kWidth + channel;
    float d[2] = {}, unused[2] = {};
    if (mine.exists) {
      const int after = direction == 1 ? mine.segment : int(segments.count) - 1 - mine.segment;
      for (int k = 0; k < after; ++k) {
        const int64_t i = (direction == 1 ? k : int(segments.count) - 1 - k) * chains + chain;
#pragma unroll
        for (int c = 0; c < 2; ++c) d[c] = sums.product[i + 8 * c] * d[c] + sums.state[i + 8 * c];
      }
    }

    // A stage's inputs are asked for two steps before, the share of dx that the other direction left one
    // step.
    for (int step = 0; step < steps; ++step, ++count) {
      copies_wait<1>();
      fence_async();
      if (own == 0) named_sync(1, kGroup);
      if (own == 1) named_sync(2, kGroup);
      if (own == 2) named_sync(3, kGroup);
      copy_stage(count + 2);
      copy_share(count + 1);
      float gate[kParts][16];
      gate_products(gate, block.room, block.room + Places::x(own, count));
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < kParts; ++i) pin(gate[i]);
      const uint32_t gy_at = columns + Places::gy(own, count);
      const int left = mine.length - step * kPositions;
      if (__all_sync(0xffffffffu, left >= kPositions))
        scan_stage<Cell, false, true>(cell, gate, gy_at, gy_at + kTile, left, d, unused, g_bias);
      else
        scan_stage<Cell, false>(cell, gate, gy_at, gy_at + kTile, left, d, unused, g_bias);
      if (step > 0) store_stage(count - 1);
      const uint32_t to = columns + Places::gradient(own);
#pragma unroll
      for (int i = 0; i < kParts; ++i)
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          uint32_t packed[4];
#pragma unroll
          for (int r = 0; r < 4; ++r)
            packed[r] = pack_bf16(gate[i][8 * pair + 2 * r], gate[i][8 * pair + 2 * r + 1]);
          stmatrix_transposed(to + i * kTile + pair * kPair, packed);
        }
      copies_wait<1>();  // the share
      fence_async();
      arrive_together(block.made(own));
    }
    if (steps > 0) store_stage(count - 1);
    copies_wait<0>();
  }
  float* const to = reinterpret_cast<float*>(shared + kSums<Cell>) + own * kParts * kWidth;
#pragma unroll
  for (int i = 0; i < kParts; ++i)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float sum = g_bias[i][c];  // of the four units
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (lane % 4 == 0) to[i * kWidth + channel + 8 * c] = sum;
    }
}

template <class Cell>
__device__ __forceinline__ void make_products(const HeadScanBackward& a, const Segments& segments,
                                              const Phase& phase, const Block<Cell>& block, int warp,
                                              float* to) {
  constexpr int kParts = Cell::kParts;
  using Places = Block<Cell>;
  const int lane = int(threadIdx.x) % 32;
  const uint32_t room = block.room, columns = room + columns_of(warp);
  float g_weight[kParts][32] = {};
  unsigned count = 0;
  for (unsigned round = 0; round < block.rounds; ++round) {
    const int steps = block.steps(a, segments, phase, round);
    for (int step = 0; step < steps; ++step, ++count)
#pragma unroll 1
      for (int own = 0; own < kScanners; ++own) {
        const uint32_t gradient = room + Places::gradient(own);
        barrier_wait(block.made(own), Places::parity(count));
        float dx[16];
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kParts; ++i)
#pragma unroll
          for (int k = 0; k < 4; ++k)
            wgmma<32, true, false>(dx, operand(room + i * kLeft) + k * kStepAcross,
                                   operand(gradient + i * kTile) + k * kStepAlong, i + k > 0);
        wgmma_commit();
#pragma unroll
        for (int i = 0; i < kParts; ++i)
#pragma unroll
          for (int k = 0; k < 2; ++k)
            wgmma<64, true, true>(g_weight[i], operand(gradient + i * kTile) + k * kStepAcross,
                                  operand(room + Places::x(own, count)) + k * kStepAcross, true);
        wgmma_commit();
        wgmma_wait<1>();
        pin(dx);
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const uint32_t at = columns + Places::share(own, count) + pair * kPair;
          uint32_t sum[4];
          if (phase.second) ldmatrix_transposed_at(sum, at);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float* d = &dx[8 * pair + 2 * i];
            sum[i] =
                phase.second ? pack_bf16(d[0] + low(sum[i]), d[1] + high(sum[i])) : pack_bf16(d[0], d[1]);
          }
          stmatrix_transposed(at, sum);
        }
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < kParts; ++i) pin(g_weight[i]);
        arrive_together(block.used(own));
      }
  }
  const int64_t first = block.which * kParts * kWidth;
#pragma unroll
  for (int i = 0; i < kParts; ++i)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int64_t row = first + i * kWidth + warp * 16 + lane / 4 + 8 * c;
#pragma unroll
      for (int n = 0; n < 8; ++n)
        *reinterpret_cast<float2*>(to + row * kWidth + 8 * n + 2 * (lane % 4)) =
            make_float2(g_weight[i][4 * n + 2 * c], g_weight[i][4 * n + 2 * c + 1]);
    }
}

#endif

}  // namespace

}  // namespace occam::kernels
