#pragma once
// Shared memory of kernel_fused_bwd.cu, what its warpgroups know of their block, and the one of them that
// runs ahead of the others: the gates.
#include "core/cuda/math.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/wgmma.cuh"
#include "ops/lstm/kernel.h"

namespace occam::kernels::fused_bwd {

using namespace cuda;

inline constexpr int kWidth = 64, kGates = 4 * kWidth, kGroup = 128;
#ifdef OCCAM_WARPGROUP
inline constexpr int kThreads = 4 * kGroup;
#else
inline constexpr int kThreads = 32;  // tells the host that the kernel is empty
#endif
inline constexpr int kInputSlots = 3, kSlots = 2;  // pairs of steps that are on their way; factors: steps
inline constexpr uint32_t kWeightBytes = kGates * kSwizzleRow;

/// Shared memory, offsets in bytes. Tiles have a row an image, a pair of steps one tile below the other.
template <int kImages>
struct Room {
  static constexpr uint32_t kStep = kImages * kSwizzleRow, kPair = 2 * kStep;
  static constexpr uint32_t kFactors = kImages * kWidth * 6 * 2;  // of a step: 6 in f16
  static constexpr uint32_t w_ih = 0, w_hh = kWeightBytes;        // [4 w] rows
  static constexpr uint32_t inputs = 2 * kWeightBytes;            // slots of [x, h]
  static constexpr uint32_t cells = inputs + kInputSlots * 2 * kPair;
  static constexpr uint32_t gy = cells + kSlots * kPair;
  static constexpr uint32_t gz = gy + kSlots * kPair;      // slots of a tile a gate
  static constexpr uint32_t gx = gz + kSlots * 4 * kPair;  // on its way out
  static constexpr uint32_t factors = gx + kPair;
  static constexpr uint32_t barriers = factors + kSlots * kFactors;
  static constexpr uint32_t places = barriers + 256;              // begin and length of ragged images
  static constexpr uint32_t bytes = places + kImages * 8 + 1024;  // 1024: for its alignment
};
/// Barriers, 8 bytes each, by number: `full` and what frees.
inline constexpr int kInputsFull = 0, kInputsFree = kInputsFull + kInputSlots,
                     kCellsFull = kInputsFree + kInputSlots, kGyFull = kCellsFull + kSlots,
                     kFactorsFull = kGyFull + kSlots, kFactorsFree = kFactorsFull + kSlots,
                     kGzFull = kFactorsFree + kSlots, kGzFree = kGzFull + kSlots;

/// Boxes are a token of kImages images, in the ragged form a row.
struct Maps {
  TensorMap x, y, cells, gy, gx;  // cells: of an LSTM
};

#ifdef OCCAM_WARPGROUP

/// {low, high} in f16.
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ void unpack_f16(uint32_t packed, float (&pair)[2]) {
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(pair[0]), "=f"(pair[1])
      : "r"(packed));
}
__device__ __forceinline__ float low(uint32_t packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float high(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

/// The warp's 16 units of kImages images between a tile and registers: r[image / 8][unit / 8] holds of unit
/// lane / 4 the images 2 (lane % 4) and the next, as products hold them.
template <int kImages>
__device__ __forceinline__ uint32_t address_of(uint32_t tile, int warp, int lane, int images) {
  const int row = images + lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
  return tile + uint32_t(tile_at(row, piece)) * 2;
}
template <int kImages>
__device__ __forceinline__ void load_units(uint32_t (&r)[kImages / 8][2], uint32_t tile, int warp, int lane) {
#pragma unroll
  for (int j = 0; j + 2 <= kImages / 8; j += 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[j][0]), "=r"(r[j][1]), "=r"(r[j + 1][0]), "=r"(r[j + 1][1])
                 : "r"(address_of<kImages>(tile, warp, lane, j * 8))
                 : "memory");
  if constexpr (kImages / 8 % 2 == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[kImages / 8 - 1][0]), "=r"(r[kImages / 8 - 1][1])
                 : "r"(address_of<kImages>(tile, warp, lane % 16, kImages - 8))
                 : "memory");
}
template <int kImages>
__device__ __forceinline__ void store_units(const uint32_t (&r)[kImages / 8][2], uint32_t tile, int warp,
                                            int lane) {
#pragma unroll
  for (int j = 0; j + 2 <= kImages / 8; j += 2)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                     address_of<kImages>(tile, warp, lane, j * 8)),
                 "r"(r[j][0]), "r"(r[j][1]), "r"(r[j + 1][0]), "r"(r[j + 1][1])
                 : "memory");
  if constexpr (kImages / 8 % 2 == 1)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(
                     address_of<kImages>(tile, warp, lane % 16, kImages - 8)),
                 "r"(r[kImages / 8 - 1][0]), "r"(r[kImages / 8 - 1][1])
                 : "memory");
}

/// What the warpgroups know of their block.
struct Work {
  uint32_t room, barriers, places;  // addresses in shared memory; places: of ragged images
  int t, pairs, direction, head, heads, first;
  int64_t which;  // direction * heads + head

  __device__ __forceinline__ uint32_t barrier(int at) const { return barriers + 8 * uint32_t(at); }
  /// Step n of the direction; outside the image when n is: copies bring zeros and take nothing.
  __device__ __forceinline__ int token(int n) const { return direction == 0 ? n : t - 1 - n; }
  /// The row of an image's step n in the ragged form, -1 when it has no such step.
  __device__ __forceinline__ int row(int image, int n) const {
    int begin, length;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(begin), "=r"(length)
                 : "r"(places + 8 * uint32_t(image)));
    return n < 0 || n >= length ? -1 : begin + (direction == 0 ? n : length - 1 - n);
  }
  /// The later step of a pair, of which pair 0 comes first; t when t is odd and the pair is 0.
  __device__ __forceinline__ int later(int pair) const { return 2 * (pairs - 1 - pair) + 1; }
  __device__ __forceinline__ void wait(int first_barrier, int slots, int at) const {
    barrier_wait(barrier(first_barrier + at % slots), uint32_t(at / slots % 2));
  }
  __device__ __forceinline__ void arrive(int first_barrier, int slots, int at) const {
    barrier_arrive(barrier(first_barrier + at % slots));
  }
};

// Copies are started by one thread of a warpgroup or, in the ragged form, by all of it, a lane an image, of
// all warps, since a warp starts those of its lanes one after another.

template <bool kRagged>
__device__ __forceinline__ bool starts_copies() {
  return kRagged || threadIdx.x % kGroup == 0;
}
/// threadIdx.x, read again: no register holds it in between.
__device__ __forceinline__ int thread_again() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}
/// The image whose rows a thread copies; kImages: none.
template <int kImages>
__device__ __forceinline__ int image_of_thread() {
  const int thread = thread_again(), lane = thread % kWarp, each = kImages / 4;
  return lane < each ? thread % kGroup / kWarp * each + lane : kImages;
}
/// The tile of step n, from column `x` of a row on.
template <bool kRagged, int kImages>
__device__ __forceinline__ void load_step(const Work& w, uint32_t to, const TensorMap& map, int x, int n,
                                          uint32_t done) {
  if constexpr (!kRagged) {
    load_box(to, &map, x, w.token(n), w.first, done);
  } else if (const int image = image_of_thread<kImages>(); image < kImages) {
    load_box(to + uint32_t(image) * kSwizzleRow, &map, x, w.row(image, n), done);
  }
}
/// And back.
template <bool kRagged, int kImages>
__device__ __forceinline__ void store_step(const Work& w, uint32_t from, const TensorMap& map, int x, int n) {
  if constexpr (!kRagged) {
    const int token = w.token(n);
    if (token >= 0 && token < w.t) store_box(&map, x, token, w.first, from);
  } else if (const int image = image_of_thread<kImages>(); image < kImages) {
    const int row = w.row(image, n);
    if (row >= 0) store_box(&map, x, row, from + uint32_t(image) * kSwizzleRow);
  }
}
/// Bytes that are to come; they may be there before they are expected.
template <bool kRagged>
__device__ __forceinline__ void expect(uint32_t barrier, uint32_t bytes) {
  if (!kRagged || threadIdx.x % kGroup == 0) barrier_expect(barrier, bytes);
  if (kRagged) __syncwarp();
}

/// x and h_{t-1} of a pair; by those who start copies, like the next.
template <bool kRagged, int kImages>
__device__ __forceinline__ void fetch_inputs(const Work& w, const Maps& maps, int pair) {
  using R = Room<kImages>;
  const uint32_t done = w.barrier(kInputsFull + pair % kInputSlots),
                 to = w.room + R::inputs + uint32_t(pair % kInputSlots) * 2 * R::kPair;
  expect<kRagged>(done, 2 * R::kPair);
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const int n = w.later(pair) - s;
    load_step<kRagged, kImages>(w, to + s * R::kStep, maps.x, w.head * kWidth, n, done);
    load_step<kRagged, kImages>(w, to + R::kPair + s * R::kStep, maps.y, (w.head * 2 + w.direction) * kWidth,
                                n - 1, done);
  }
}
/// A pair of a tensor that is laid out like y, of the tokens of the steps or (back 1) of those before.
template <bool kRagged, int kImages>
__device__ __forceinline__ void fetch(const Work& w, const TensorMap& map, uint32_t slots, int full, int pair,
                                      int back) {
  using R = Room<kImages>;
  const uint32_t done = w.barrier(full + pair % kSlots),
                 to = w.room + slots + uint32_t(pair % kSlots) * R::kPair;
  expect<kRagged>(done, R::kPair);
#pragma unroll
  for (int s = 0; s < 2; ++s)
    load_step<kRagged, kImages>(w, to + s * R::kStep, map, (w.head * 2 + w.direction) * kWidth,
                                w.later(pair) - s - back, done);
}

// The factors of an element. LSTM, from gates i, f, g, o and c = f c_before + i g:
//   dc = dc_after + dh A    dz = (dc P, dc Q, dc R, dh S)    dc_before = dc f
//   A = o (1 - tanh^2 c)    P = g i (1 - i)    Q = c_before f (1 - f)    R = i (1 - g^2)
//   S = tanh(c) o (1 - o)
// GRU, from r, u, z3 and n = tanh(z2 + r z3); what is carried to the step before is a part of dh itself:
//   dc = carried + dh (A = 1)    dz = dc (P, Q, R, S)    carried = dc u
//   R = (1 - u) (1 - n^2)    S = R r    P = S z3 (1 - r)    Q = (h_before - n) u (1 - u)
// A thread writes those of its elements, [image / 8][3] pieces of 16 bytes, for the thread of the chain that
// has the same elements.

template <Cell kCell, bool kRagged, int kImages>
__device__ __forceinline__ void gates(const Work& w, const Maps& maps, const bf16* b_ih, const bf16* b_hh) {
  using R = Room<kImages>;
  const int thread = int(threadIdx.x) % kGroup, lane = thread % kWarp, warp = thread / kWarp;
  constexpr bool kLstm = kCell == Cell::lstm;
  float bias[4][2];  // sigmoid(z) = 1/2 + 1/2 tanh(z / 2), so half of it where a sigmoid follows
#pragma unroll
  for (int q = 0; q < 4; ++q)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int of_x = given_gate(kCell, q, false), of_h = given_gate(kCell, q, true);
      const int64_t at = w.which * given_gates(kCell) * kWidth + warp * 16 + half * 8 + lane / 4;
      const float sum = (of_x < 0 ? 0.0f : to_acc(b_ih[at + of_x * kWidth])) +
                        (of_h < 0 ? 0.0f : to_acc(b_hh[at + of_h * kWidth]));
      bias[q][half] = sum * (q < 2 || (kLstm && q == 3) ? 0.5f : 1.0f);
    }
  const uint32_t w_ih = operand(w.room + R::w_ih), w_hh = operand(w.room + R::w_hh);
  for (int pair = 0; pair < w.pairs; ++pair) {
    w.wait(kInputsFull, kInputSlots, pair);
    if constexpr (kLstm) w.wait(kCellsFull, kSlots, pair);
#pragma unroll 1
    for (int s = 0; s < 2; ++s) {
      const uint32_t x = w.room + R::inputs + uint32_t(pair % kInputSlots) * 2 * R::kPair + s * R::kStep;
      const uint32_t ox = operand(x), oh = operand(x + R::kPair);
      float z[4][kImages / 2];
      wgmma_fence();
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const uint32_t gate = q * (kWidth * kSwizzleRow / 16);
        const bool of_x = given_gate(kCell, q, false) >= 0, of_h = given_gate(kCell, q, true) >= 0;
#pragma unroll
        for (int k = 0; k < kWidth / 16; ++k)
          if (of_x)
            wgmma<kImages, false, false>(z[q], w_ih + gate + k * kStepAlong, ox + k * kStepAlong, k > 0);
#pragma unroll
        for (int k = 0; k < kWidth / 16; ++k)
          if (of_h)
            wgmma<kImages, false, false>(z[q], w_hh + gate + k * kStepAlong, oh + k * kStepAlong,
                                         of_x || k > 0);
      }
      wgmma_commit();
      uint32_t before[kImages / 8][2];
      // c_before, or h_before where there are no cells
      load_units<kImages>(
          before,
          kLstm ? w.room + R::cells + uint32_t(pair % kSlots) * R::kPair + s * R::kStep : x + R::kPair, warp,
          lane);
      wgmma_wait<0>();
#pragma unroll
      for (int q = 0; q < 4; ++q) pin(z[q]);
      const int step = 2 * pair + s;
      if (step >= kSlots) w.wait(kFactorsFree, kSlots, step - kSlots);
      const uint32_t to = w.room + R::factors + uint32_t(step % kSlots) * R::kFactors + uint32_t(thread) * 16;
#pragma unroll
      for (int j = 0; j < kImages / 8; ++j) {
        uint32_t words[12];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float factor[6][2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int at = 4 * j + 2 * half + e;
            const float state = e == 0 ? low(before[j][half]) : high(before[j][half]);
            const float s0 = fmaf(tanh_fast(fmaf(z[0][at], 0.5f, bias[0][half])), 0.5f, 0.5f);
            const float s1 = fmaf(tanh_fast(fmaf(z[1][at], 0.5f, bias[1][half])), 0.5f, 0.5f);
            if constexpr (kLstm) {
              const float g = tanh_fast(z[2][at] + bias[2][half]);
              const float o = fmaf(tanh_fast(fmaf(z[3][at], 0.5f, bias[3][half])), 0.5f, 0.5f);
              const float ig = s0 * g, tc = tanh_fast(fmaf(s1, state, ig));
              factor[0][e] = fmaf(-tc * o, tc, o);
              factor[1][e] = fmaf(-ig, s0, ig);
              factor[2][e] = state * fmaf(-s1, s1, s1);
              factor[3][e] = fmaf(-ig, g, s0);
              factor[4][e] = tc * fmaf(-o, o, o);
            } else {
              const float z3 = z[3][at] + bias[3][half];
              const float n = tanh_fast(fmaf(s0, z3, z[2][at] + bias[2][half]));
              factor[0][e] = 1;
              factor[3][e] = (1 - s1) * fmaf(-n, n, 1);
              factor[4][e] = factor[3][e] * s0;
              factor[1][e] = factor[4][e] * fmaf(-z3, s0, z3);
              factor[2][e] = (state - n) * fmaf(-s1, s1, s1);
            }
            factor[5][e] = s1;
          }
#pragma unroll
          for (int n = 0; n < 6; ++n) words[half * 6 + n] = pack_f16(factor[n][0], factor[n][1]);
        }
#pragma unroll
        for (int v = 0; v < 3; ++v)
          asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to + (j * 3 + v) * kGroup * 16),
                       "r"(words[4 * v]), "r"(words[4 * v + 1]), "r"(words[4 * v + 2]), "r"(words[4 * v + 3])
                       : "memory");
      }
      __syncwarp();
      if (lane == 0) w.arrive(kFactorsFull, kSlots, step);
      __syncwarp();
    }
    if constexpr (kLstm) {
      named_sync(1, kGroup);  // the cells of the pair are read
      if (starts_copies<kRagged>() && pair + kSlots < w.pairs)
        fetch<kRagged, kImages>(w, maps.cells, R::cells, kCellsFull, pair + kSlots, 1);
    }
    __syncwarp();
  }
}

#endif

}  // namespace occam::kernels::fused_bwd
