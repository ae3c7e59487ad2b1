#pragma once
// The parts of a product of few rows (kernel_rows.cu) that a block works through.
#include "core/cuda/cluster.cuh"
#include "core/cuda/gelu_fast.h"
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/wgmma.cuh"
#include "ops/linear/kernel.h"

namespace occam::kernels::rows {

using namespace cuda;

constexpr int kStepK = kSwizzleColumns;  // of k in a chunk
constexpr int kWarpgroup = 128;
constexpr int kMostChunks = 16;  // of a row that is normalised: shared memory holds it
constexpr int kMostStages = 24;

/// y^T = w x^T: the 64 rows of a warpgroup's product are outputs, its columns rows of x, of which there are
/// few.
template <int kR, int kG, bool kN>
struct Plan {
  static constexpr int kRows = kR, kGroups = kG, kOutputs = 64 * kG;
  static constexpr bool kNorm = kN;
  /// The first kGroups warpgroups multiply; all workers normalise before and finish behind.
  static constexpr int kWorkers = 2 * kWarpgroup, kThreads = kWorkers + kWarp;
  static constexpr int kBytesW = kOutputs * kSwizzleRow, kBytesX = kRows * kSwizzleRow;
  /// Rows that are normalised stay, others come chunk by chunk with the weights.
  static constexpr int kStage = kBytesW + (kNorm ? 0 : kBytesX);
  static constexpr int kPieces = kOutputs / 8;  // of 8 outputs, of a row
  static constexpr int kBarriers = (2 * kMostStages + 1) * 8;

  /// Of a row's pieces each block of the cluster finishes 2^share_log; floats from row to row of them without
  /// bank conflicts either way; bytes of sums of one block for another.
  static constexpr OCCAM_HD int pitch(int share_log) { return (8 << share_log) + 4; }
  static constexpr OCCAM_HD int sums(int share_log) { return kRows * pitch(share_log) * 4; }
  static constexpr int share_log(int split) {
    int log = 0;
    while ((split << log) < kPieces) ++log;
    return log;
  }

  static constexpr int bytes(int stages, int chunks, int split) {
    return 1024 + stages * kStage + (kNorm ? chunks * (kBytesX + 4 * kStepK) : 0) +
           split * sums(share_log(split)) + kBarriers;
  }
};

struct Sizes {
  int64_t m, n, k;
  int chunks, stages, split;
  int chunks_of_rank, share_log;
  float eps;
  bool gelu;
  const bf16 *bias, *norm_weight, *norm_bias, *residual;
  bf16* y;
};
struct Maps {
  TensorMap x, w;
};

/// Where the parts of shared memory are.
template <class P>
struct Shared {
  uint32_t ring, x, sums, scale, barriers;
  int stages;

  __device__ Shared(const Sizes& s, const unsigned char* memory) : stages(s.stages) {
    ring = (shared_address(memory) + 1023) & ~1023u;
    x = ring + uint32_t(s.stages * P::kStage);
    sums = x + uint32_t(P::kNorm ? s.chunks * P::kBytesX : 0);
    scale = sums + uint32_t(s.split * P::sums(s.share_log));  // weights of the norm, then its biases, bf16
    barriers = scale + uint32_t(P::kNorm ? s.chunks * 4 * kStepK : 0);
  }
  __device__ uint32_t full(int i) const { return barriers + 8 * uint32_t(i); }
  __device__ uint32_t empty(int i) const { return full(stages + i); }
  __device__ uint32_t all_x() const { return full(2 * stages); }
};

__device__ __forceinline__ uint4 load_piece(uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_piece(uint32_t at, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void store_float(uint32_t at, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
}
/// The 8 bf16 of a piece.
__device__ __forceinline__ void unpack(const uint4& piece, float (&v)[8]) {
  const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ uint4 packed(const float (&v)[8]) {
  return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}

/// One thread: weights first, which do not depend on the kernels ahead, then rows of x.
template <class P>
__device__ __forceinline__ void produce(const Shared<P>& shared, const Maps& maps, const Sizes& s, int first,
                                        int count, int output, int row) {
  auto weights = [&](int c, int slot) {
    barrier_expect(shared.full(slot), P::kStage);
    load_box(shared.ring + slot * P::kStage, &maps.w, (first + c) * kStepK, output, shared.full(slot));
  };
  auto rows = [&](int c, int slot) {
    load_box(shared.ring + slot * P::kStage + P::kBytesW, &maps.x, (first + c) * kStepK, row,
             shared.full(slot));
  };
  const int ready = min(count, s.stages);
#pragma unroll 1
  for (int c = 0; c < ready; ++c) weights(c, c);
  grid_wait();
  if constexpr (P::kNorm) {
    barrier_expect(shared.all_x(), uint32_t(count * P::kBytesX));
#pragma unroll 1
    for (int c = 0; c < count; ++c)
      load_box(shared.x + c * P::kBytesX, &maps.x, c * kStepK, row, shared.all_x());
  } else {
#pragma unroll 1
    for (int c = 0; c < ready; ++c) rows(c, c);
  }
  int slot = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int c = ready; c < count; ++c) {
    barrier_wait(shared.empty(slot), parity);
    weights(c, slot);
    if constexpr (!P::kNorm) rows(c, slot);
    if (++slot == s.stages) slot = 0, parity ^= 1;
  }
}

/// Rows of x become normalised ones, in place. kLanes lanes have a row: lane % 8 is the piece of every chunk,
/// lane / 8 the first chunk. The loops stay loops: this code runs once, and fetching more of it would take
/// longer than running it. Deviations are summed from the row's first element, whose own one is at most
/// sqrt(k) standard deviations: one pass, and the variance good to k roundings of f32.
template <class P>
__device__ __forceinline__ void normalise(const Shared<P>& shared, const Sizes& s) {
  constexpr int kLanes = P::kRows >= 32 ? 8 : 16, kTeams = P::kWorkers / kLanes;
  const int team = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  const int piece = lane % 8, begin = lane / 8;
  const float share = 1 / float(s.k);
#pragma unroll 1
  for (int row = team; row < P::kRows; row += kTeams) {
    const uint32_t at = shared.x + swizzled(row, piece);
    const float first = __uint_as_float(load_piece(shared.x + swizzled(row, 0)).x << 16);
    float sum = 0, squares = 0;
#pragma unroll 1
    for (int c = begin; c * kStepK + piece * 8 < s.k; c += kLanes / 8) {
      float x[8];
      unpack(load_piece(at + c * P::kBytesX), x);
#pragma unroll
      for (int e = 0; e < 8; ++e) x[e] -= first;
      sum += ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
      squares += ((x[0] * x[0] + x[1] * x[1]) + (x[2] * x[2] + x[3] * x[3])) +
                 ((x[4] * x[4] + x[5] * x[5]) + (x[6] * x[6] + x[7] * x[7]));
    }
    sum = warp_sum<kLanes>(sum) * share;
    // Never below 0 by more than roundings; max_ keeps a NaN.
    const float variance = max_(warp_sum<kLanes>(squares) * share - sum * sum, 0.0f);
    const float scale = rsqrtf(variance + s.eps), shift = -(first + sum) * scale;
#pragma unroll 1
    for (int c = begin; c * kStepK + piece * 8 < s.k; c += kLanes / 8) {
      float x[8], w[8], b[8];
      unpack(load_piece(at + c * P::kBytesX), x);
      unpack(load_piece(shared.scale + c * 2 * kStepK + piece * 16), w);
      unpack(load_piece(shared.scale + (s.chunks + c) * 2 * kStepK + piece * 16), b);
#pragma unroll
      for (int e = 0; e < 8; ++e) x[e] = fmaf(fmaf(x[e], scale, shift), w[e], b[e]);
      store_piece(at + c * P::kBytesX, packed(x));
    }
  }
}

/// Sums over this block's part of k, to the blocks that finish them: there sums[rank][row][output].
template <class P>
__device__ __forceinline__ void multiply(const Shared<P>& shared, const Sizes& s, int count, int rank) {
  const int thread = int(threadIdx.x), lane = thread % kWarp;
  // For the compiler to know that all lanes have the same operands.
  const int warp = __shfl_sync(0xffffffffu, thread / kWarp, 0), group = warp / 4;
  const bool refills = count > s.stages;
  // Products of few columns take longer than their turn, so that four sums grow side by side.
  constexpr int kChains = P::kRows <= 32 ? 4 : 2;
  float d[kChains][P::kRows / 2] = {};
#pragma unroll
  for (int i = 0; i < kChains; ++i) pin(d[i]);
  int slot = 0, before = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int c = 0; c < count; ++c) {
    barrier_wait(shared.full(slot), parity);
    const uint32_t stage = shared.ring + slot * P::kStage;
    const uint32_t w = operand(stage + group * 64 * kSwizzleRow);
    const uint32_t x = operand(P::kNorm ? shared.x + c * P::kBytesX : stage + P::kBytesW);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      wgmma<P::kRows, false, false>(d[step % kChains], w + step * kStepAlong, x + step * kStepAlong, true);
    wgmma_commit();
    if (refills && c > 0) {
      wgmma_wait<1>();
      if (lane == 0) barrier_arrive(shared.empty(before));
      __syncwarp();
    }
    before = slot;
    if (++slot == s.stages) slot = 0, parity ^= 1;
  }
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kChains; ++i) pin(d[i]);
#pragma unroll
  for (int i = 0; i < P::kRows / 2; ++i) {
    d[0][i] += d[1][i];
    if constexpr (kChains == 4) d[0][i] += d[2][i] + d[3][i];
  }
  const int pitch = P::pitch(s.share_log), row = lane % 4 * 2;
  auto place = [&](int i) { return 4 * uint32_t((i / 2 * 8 + row + i % 2) * pitch); };
  if (s.split > 1) cluster_wait();  // for the others to have begun: their memory takes these sums
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int piece = warp * 2 + half, owner = piece >> s.share_log;
    const uint32_t sums = shared.sums + rank * P::sums(s.share_log);
    const uint32_t to = sums + 4 * ((piece - (owner << s.share_log)) * 8 + lane / 4);
    const uint32_t there = s.split > 1 ? address_of_rank(to, owner) : 0;
#pragma unroll
    for (int i = 0; i < P::kRows / 4; ++i) {
      const float v = d[0][i / 2 * 4 + half * 2 + i % 2];
      if (s.split > 1)
        store_at_rank(there + place(i), v);
      else
        store_float(to + place(i), v);
    }
  }
}

/// This block's share of the tile: sums of the cluster added in order of rank, bias, GELU, residual,
/// rounding.
template <class P>
struct Finish {
  static constexpr int kMost = div_up(P::kRows * P::kPieces, P::kWorkers);  // pieces a thread may have
  int share_log, row, output;                                               // where this block's share lies
  int64_t end;                                                              // of the outputs
  uint4 bias[kMost], residual[kMost];

  __device__ int place(int i) const { return int(threadIdx.x) + i * P::kWorkers; }
  __device__ int64_t row_of(int p) const { return row + (p >> share_log); }
  __device__ int64_t column_of(int p) const { return output + (p & ((1 << share_log) - 1)) * 8; }
  __device__ bool inside(const Sizes& s, int p) const {
    return p < P::kRows << share_log && row_of(p) < s.m && column_of(p) < end;
  }

  __device__ void fetch(const Sizes& s) {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int p = place(i);
      bias[i] = residual[i] = {};
      if (!inside(s, p)) continue;
      if (s.bias != nullptr) bias[i] = *reinterpret_cast<const uint4*>(s.bias + column_of(p));
      if (s.residual != nullptr)
        residual[i] = *reinterpret_cast<const uint4*>(s.residual + row_of(p) * s.n + column_of(p));
    }
  }
  __device__ void store(const Sizes& s, uint32_t sums) const {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int p = place(i);
      if (!inside(s, p)) continue;
      const uint32_t at =
          sums + 4 * ((p >> share_log) * P::pitch(share_log) + (p & ((1 << share_log) - 1)) * 8);
      float x[8] = {}, b[8], r[8];
#pragma unroll 1
      for (int other = 0; other < s.split; ++other) {
        const uint4 low = load_piece(at + other * P::sums(share_log)),
                    high = load_piece(at + other * P::sums(share_log) + 16);
        x[0] += __uint_as_float(low.x), x[1] += __uint_as_float(low.y);
        x[2] += __uint_as_float(low.z), x[3] += __uint_as_float(low.w);
        x[4] += __uint_as_float(high.x), x[5] += __uint_as_float(high.y);
        x[6] += __uint_as_float(high.z), x[7] += __uint_as_float(high.w);
      }
      unpack(bias[i], b);
      unpack(residual[i], r);
#pragma unroll
      for (int e = 0; e < 8; ++e) x[e] += b[e];
      if (s.gelu)
#pragma unroll
        for (int e = 0; e < 8; ++e) x[e] = gelu_fast(x[e]);
#pragma unroll
      for (int e = 0; e < 8; ++e) x[e] += r[e];
      *reinterpret_cast<uint4*>(s.y + row_of(p) * s.n + column_of(p)) = packed(x);
    }
  }
};

}  // namespace occam::kernels::rows
