#pragma once
// Backward of 64 keys by a warpgroup, which keeps their dk and dv in registers and walks over queries. Scores
// are transposed: rows are keys.
//   s' = k q'   dp' = v g'   dv += p' g   dk += ds' q      (' transposes)
#include "ops/attention/head.cuh"

namespace occam::kernels {

#ifdef OCCAM_WARPGROUP

using namespace cuda;

/// What a warpgroup of keys knows of the queries it walks over.
struct Walk {
  uint32_t own_k, own_v;     // its 64 keys as left operands
  uint32_t q, g;             // row 0 of the tiles
  const float *lse, *delta;  // of the rows of q; lse in exponents of 2
  float factor;              // of scores, to exponents of 2
  bool attended[2];          // a lane's two keys
};

/// kCount queries from `query` on: adds to dk and dv, and leaves the gradients of the scores in `b`. The last
/// products are under way on return.
template <int kCount>
__device__ __forceinline__ void walk(const Walk& w, int query, float (&dk)[32], float (&dv)[32],
                                     uint32_t (&b)[kCount / 16][4]) {
  const int lane = int(threadIdx.x) % kWarp;
  const uint32_t rows = query / 8 * (kStepAcross / 2);
  float p[kCount / 2] = {}, ds[kCount / 2] = {};
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    wgmma<kCount, false, false>(p, w.own_k + k * kStepAlong, w.q + rows + k * kStepAlong, k > 0);
  wgmma_commit();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    wgmma<kCount, false, false>(ds, w.own_v + k * kStepAlong, w.g + rows + k * kStepAlong, k > 0);
  wgmma_commit();
  wgmma_wait<1>();
  pin(p);
  const float *lse = w.lse + query + lane % 4 * 2, *delta = w.delta + query + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kCount / 2; i += 4) {
    float2 shift = *reinterpret_cast<const float2*>(lse + i * 2);
    p[i] = exp2_fast(p[i] * w.factor - shift.x), p[i + 1] = exp2_fast(p[i + 1] * w.factor - shift.y);
    p[i + 2] = exp2_fast(p[i + 2] * w.factor - shift.x), p[i + 3] = exp2_fast(p[i + 3] * w.factor - shift.y);
  }
  uint32_t a[kCount / 16][4];
#pragma unroll
  for (int i = 0; i < kCount / 2; i += 2)
    a[i / 8][i % 8 / 2] = w.attended[i / 2 % 2] ? pack_bf16(p[i], p[i + 1]) : 0;
  wgmma_wait<0>();
  pin(ds);
  pin(dv);
  wgmma_fence();
#pragma unroll
  for (int n = 0; n < kCount / 16; ++n) wgmma_registers(dv, a[n], w.g + rows + n * kStepAcross, true);
  wgmma_commit();
#pragma unroll
  for (int i = 0; i < kCount / 2; i += 4) {
    float2 mean = *reinterpret_cast<const float2*>(delta + i * 2);
    uint32_t upper = pack_bf16(p[i] * (ds[i] - mean.x), p[i + 1] * (ds[i + 1] - mean.y));
    uint32_t lower = pack_bf16(p[i + 2] * (ds[i + 2] - mean.x), p[i + 3] * (ds[i + 3] - mean.y));
    b[i / 8][i % 8 / 2] = w.attended[0] ? upper : 0;
    b[i / 8][i % 8 / 2 + 1] = w.attended[1] ? lower : 0;
  }
  pin(dk);
  wgmma_fence();
#pragma unroll
  for (int n = 0; n < kCount / 16; ++n) wgmma_registers(dk, b[n], w.q + rows + n * kStepAcross, true);
  wgmma_commit();
}

#endif

}  // namespace occam::kernels
