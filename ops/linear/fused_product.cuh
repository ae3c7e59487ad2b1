#pragma once
// The parts of the fused product (kernel_wgmma.cu) that a warp works through: the plan of a tile, the ring of
// stages with its producer, the product, and what a warp does with its sums.
#include <algorithm>

#include "core/cuda/gelu_fast.h"
#include "core/cuda/launch.h"
#include "core/cuda/wgmma.cuh"
#include "ops/linear/kernel.h"

namespace occam::kernels::product {

using namespace cuda;

constexpr int kStepK = kSwizzleColumns;  // of k in a stage
constexpr int kWarpgroup = 128, kThreads = 3 * kWarpgroup, kWarps = 8;
constexpr int kBoxRows = 16;  // a box of results: what a warp holds of 64 columns
constexpr int kBox = kBoxRows * kSwizzleRow;
/// What a block may have, less what aligning the tiles takes.
constexpr int kSharedLimit = 227 * 1024 - 1024;

struct Maps {
  TensorMap a, b, d, z;
};
struct Sizes {
  int64_t n;
  int m, k_steps, tiles_n, tiles;
  const bf16* bias;
  float* column_sums;  // [row tiles, n] or none
};

/// A tile of kRows x kN. b is [n,k] in the forward pass and [k,n] for the gradient.
template <int kR, int kN_, ProductEpilogue kE>
struct Plan {
  static constexpr int kRows = kR, kN = kN_;
  static constexpr ProductEpilogue kEpilogue = kE;
  static constexpr bool kGradient = kEpilogue == ProductEpilogue::gelu_gradient;
  static constexpr int kHalves = kRows / 64;  // products of 64 rows that a warpgroup makes of a tile
  static constexpr int kChunks = kN / 64;     // of 64 columns
  static constexpr int kBytesA = kRows * kSwizzleRow, kBytesB = kN * kSwizzleRow;
  static constexpr int kStage = kBytesA + kBytesB;
  /// Boxes a warp has for results. The gradient reads all of its part of z into them before it multiplies.
  static constexpr int kBoxes = kGradient ? kHalves * kChunks : kE == ProductEpilogue::gelu_keep ? 4 : 2;
  static constexpr int kResults = kWarps * kBoxes * kBox;
  /// Floats: the bias of two tiles for each warpgroup, or the column sums of each warp.
  static constexpr int kVectors = 8 * kN * 4;
  static constexpr int kBarriers = 256;
  static constexpr int kStages = std::min(8, (kSharedLimit - kResults - kVectors - kBarriers) / kStage);
  static constexpr int kShared = kStages * kStage + kResults + kVectors + kBarriers + 1024;
  static_assert(kStages >= 2);
};

/// Tile number i of this block.
struct Tile {
  int row, column;
};
template <class P>
__device__ __forceinline__ Tile tile_number(const Sizes& s, int tile) {
  return {tile / s.tiles_n * P::kRows, tile % s.tiles_n * P::kN};
}

/// Where the parts of shared memory are.
template <class P>
struct Shared {
  uint32_t stages, results, vectors, barriers;
  __device__ explicit Shared(const void* base) {
    stages = (shared_address(base) + 1023) & ~1023u;
    results = stages + P::kStages * P::kStage;
    vectors = results + P::kResults;
    barriers = vectors + P::kVectors;
  }
  __device__ uint32_t a(int stage) const { return stages + stage * P::kStage; }
  __device__ uint32_t b(int stage) const { return a(stage) + P::kBytesA; }
  __device__ uint32_t full(int stage) const { return barriers + 8 * stage; }
  __device__ uint32_t empty(int stage) const { return barriers + 8 * (P::kStages + stage); }
  __device__ uint32_t z(int warp) const { return barriers + 8 * (2 * P::kStages + warp); }
};

/// The place in the ring after `steps` stages.
template <class P>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance(int steps) {
    stage += steps;
    phase ^= uint32_t(stage / P::kStages) & 1;
    stage %= P::kStages;
  }
  __device__ __forceinline__ void next() {
    if (++stage == P::kStages) stage = 0, phase ^= 1;
  }
};

template <class P>
__device__ __forceinline__ void produce(const Shared<P>& shared, const Maps& maps, const Sizes& s) {
  Ring<P> ring;
  for (int t = int(blockIdx.x); t < s.tiles; t += int(gridDim.x)) {
    const Tile tile = tile_number<P>(s, t);
    for (int step = 0; step < s.k_steps; ++step, ring.next()) {
      const uint32_t full = shared.full(ring.stage), b = shared.b(ring.stage);
      barrier_wait(shared.empty(ring.stage), ring.phase ^ 1);
      barrier_expect(full, P::kStage);
      load_box(shared.a(ring.stage), &maps.a, step * kStepK, tile.row, full);
      if constexpr (P::kGradient) {
#pragma unroll
        for (int c = 0; c < P::kChunks; ++c)
          load_box(b + c * kStepK * kSwizzleRow, &maps.b, tile.column + 64 * c, step * kStepK, full);
      } else {
        load_box(b, &maps.b, step * kStepK, tile.column, full);
      }
    }
  }
}

/// Named barriers of a warpgroup: of its own threads, and to take its turn. A barrier in shared memory tells
/// phases by parity, so nobody may wait for a stage's use before the use before that has ended: a warpgroup
/// begins when the other has seen the last stage of its tile.
__device__ __forceinline__ int own_of(int group) { return 1 + group; }
__device__ __forceinline__ int turn_of(int group) { return 3 + group; }

/// The sums of a tile, in the order of the ring.
template <class P>
__device__ __forceinline__ void multiply(float (&x)[P::kHalves][P::kN / 2], const Shared<P>& shared,
                                         Ring<P>& ring, int k_steps, int group) {
  auto release = [&](int stage) {
    if (threadIdx.x % 32 == 0) barrier_arrive(shared.empty(stage));
  };
  int previous = 0;
  for (int step = 0; step < k_steps; ++step) {
    barrier_wait(shared.full(ring.stage), ring.phase);
    const uint32_t a = operand(shared.a(ring.stage)),
                   b = operand(shared.b(ring.stage), P::kGradient ? kStepK * kSwizzleRow : 16);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kStepK / 16; ++i) {
#pragma unroll
      for (int half = 0; half < P::kHalves; ++half)
        wgmma<P::kN, false, P::kGradient>(x[half], a + half * (64 / 16) * kStepAcross + i * kStepAlong,
                                          b + i * (P::kGradient ? kStepAcross : kStepAlong), step + i > 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (step > 0) release(previous);
    previous = ring.stage;
    ring.next();
  }
  named_arrive(turn_of(group ^ 1), 2 * kWarpgroup);
  wgmma_wait<0>();
  release(previous);
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t packed) {
  return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u)};
}
__device__ __forceinline__ float2 load_shared2(uint32_t at) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ float load_shared(uint32_t at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ void store_shared(uint32_t at, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
}

/// A warp at the end of its tile: `first` is the row of the matrix of its box in the first 64 rows, `boxes`
/// where its boxes are.
template <class P>
struct Finish {
  const Maps& maps;
  const Sizes& s;
  uint32_t boxes;
  int lane, row, column;

  /// The 16-byte unit of a box that this lane passes to ldmatrix and stmatrix, 16 columns from 8 j on.
  __device__ __forceinline__ uint32_t unit(uint32_t box, int j) const {
    return box + swizzled(lane & 15, j + (lane >> 4));
  }
  /// Hands a box to the copy engine, behind a fence_async and a __syncwarp.
  __device__ __forceinline__ void store(const TensorMap& map, uint32_t box, int c, int half) const {
    if (lane == 0) store_box(&map, column + 64 * c, row + 64 * half, box);
  }
  template <int kNewest>
  __device__ __forceinline__ void wait_read() const {
    if (lane == 0) store_wait_read<kNewest>();
    __syncwarp();
  }

  /// The epilogues of the forward pass. `bias`: where the tile's bias is. Boxes (for gelu_keep pairs of them)
  /// are used in turn, `place` is the next; the one before may still be on its way.
  __device__ __forceinline__ void forward(const float (&x)[P::kHalves][P::kN / 2], uint32_t bias,
                                          uint32_t& place) const {
    constexpr bool kKeep = P::kEpilogue == ProductEpilogue::gelu_keep;
    constexpr int kOutputs = kKeep ? 2 : 1;
    static_assert(P::kBoxes == 2 * kOutputs);
#pragma unroll
    for (int c = 0; c < P::kChunks; ++c) {
      if (column + 64 * c >= s.n) break;
      float2 add[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) add[j] = load_shared2(bias + 4 * (64 * c + 8 * j + lane % 4 * 2));
#pragma unroll
      for (int half = 0; half < P::kHalves; ++half) {
        if (row + 64 * half >= s.m) break;
        const uint32_t box = boxes + place * kOutputs * kBox;
        place ^= 1;
        wait_read<kOutputs>();
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
          uint32_t packed[4], kept[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {  // rows g, g + 8 of the 8 columns j, then of j + 1
            float2 v{x[half][4 * (8 * c + j) + 2 * i] + add[j + i / 2].x,
                     x[half][4 * (8 * c + j) + 2 * i + 1] + add[j + i / 2].y};
            if constexpr (kKeep) {
              kept[i] = pack_bf16(v.x, v.y);
              v = unpack_bf16(kept[i]);
            }
            packed[i] = pack_bf16(gelu_fast(v.x), gelu_fast(v.y));
          }
          stmatrix(unit(box, j), packed[0], packed[1], packed[2], packed[3]);
          if constexpr (kKeep) stmatrix(unit(box + kBox, j), kept[0], kept[1], kept[2], kept[3]);
        }
        fence_async();
        __syncwarp();
        store(maps.d, box, c, half);
        if constexpr (kKeep) store(maps.z, box + kBox, c, half);
      }
    }
  }

  /// Starts the reading of z into the boxes.
  __device__ __forceinline__ void fetch_z(uint32_t barrier) const {
    __syncwarp();
    if (lane != 0 || row >= s.m) return;
    store_wait_read<0>();
    const int halves = P::kHalves == 1 || row + 64 >= s.m ? 1 : 2;
    const int chunks = min(P::kChunks, int((s.n - column + 63) / 64));
    barrier_expect(barrier, uint32_t(halves * chunks * kBox));
    for (int c = 0; c < chunks; ++c)
      for (int half = 0; half < halves; ++half)
        load_box(boxes + (c * P::kHalves + half) * kBox, &maps.z, column + 64 * c, row + 64 * half, barrier);
  }

  /// d = x gelu'(z) in the place of z. `sums`: where the warp's sums over its rows go.
  __device__ __forceinline__ void gradient(const float (&x)[P::kHalves][P::kN / 2], uint32_t sums) const {
#pragma unroll
    for (int c = 0; c < P::kChunks; ++c) {
      if (column + 64 * c >= s.n) break;
      float sum[8][4] = {};
#pragma unroll
      for (int half = 0; half < P::kHalves; ++half) {
        if (row + 64 * half >= s.m) break;
        const uint32_t box = boxes + (c * P::kHalves + half) * kBox;
        uint32_t given[4][4];
#pragma unroll
        for (int j = 0; j < 8; j += 2) ldmatrix_at(given[j / 2], unit(box, j));
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
          uint32_t packed[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float2 z = unpack_bf16(given[j / 2][i]);
            const GeluParts left = gelu_parts(z.x), right = gelu_parts(z.y);
            packed[i] = pack_bf16(x[half][4 * (8 * c + j) + 2 * i] * gelu_slope_fast(z.x, left),
                                  x[half][4 * (8 * c + j) + 2 * i + 1] * gelu_slope_fast(z.y, right));
          }
          stmatrix(unit(box, j), packed[0], packed[1], packed[2], packed[3]);
        }
        fence_async();
        __syncwarp();
        store(maps.d, box, c, half);
        if (s.column_sums != nullptr) add_rows(sum, box);
      }
      if (s.column_sums != nullptr && lane < 4) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          store_shared(sums + 4 * (64 * c + 8 * j + 2 * lane), sum[j][0]);
          store_shared(sums + 4 * (64 * c + 8 * j + 2 * lane + 1), sum[j][1]);
        }
      }
    }
  }
  /// Adds the 16 rows of a box: a product with ones, whose right operand is the box.
  __device__ __forceinline__ void add_rows(float (&sum)[8][4], uint32_t box) const {
    constexpr uint32_t kOnes = 0x3f803f80u;
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t b[4];
      ldmatrix_transposed_at(b, unit(box, j));
      mma_bf16(sum[j], ones, b[0], b[1]);
      mma_bf16(sum[j + 1], ones, b[2], b[3]);
    }
  }
};

}  // namespace occam::kernels::product
