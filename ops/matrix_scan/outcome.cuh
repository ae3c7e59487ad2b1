#pragma once
// What the gradient of an output means for its num and den.
#include "ops/matrix_scan/tile.cuh"

namespace occam::kernels {

inline ScanView<bf16> __host__ __device__ gy_view(const MatrixScanBackward<bf16, float>& a) {
  const int64_t e = a.s.outputs(), row = a.s.h * e * a.s.p;
  return {a.gy, a.s.t * row, row, e == 2 ? a.s.p : 0, e * a.s.p};
}

/// y = num / max(|den|, floor): num has the gradient gy times `inverse`.
struct OutcomeGradient {
  float inverse, den, floor;
};
__device__ __forceinline__ OutcomeGradient outcome_gradient(const MatrixScanBackward<bf16, float>& a,
                                                            const ScanWindow& w, int64_t direction,
                                                            int64_t head, int token) {
  const int64_t e = a.s.outputs(), out = a.s.merge ? 0 : direction, line = (w.row + token) * e + out;
  const int64_t y = (((w.row + token) * a.s.h + head) * e + out) * kScanWidth;
  float product = 0;
  for (int i = 0; i < kScanWidth; i += 8) {
    const uint4 gy8 = *reinterpret_cast<const uint4*>(a.gy + y + i),
                y8 = *reinterpret_cast<const uint4*>(a.y + y + i);
    const uint32_t gs[4] = {gy8.x, gy8.y, gy8.z, gy8.w}, ys[4] = {y8.x, y8.y, y8.z, y8.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 b = unpack_bf16(gs[k]), c = unpack_bf16(ys[k]);
      product += b.x * c.x + b.y * c.y;
    }
  }
  const float den = a.den[line * a.s.h + head], floor = a.floor[line * a.s.h + head];
  const float inverse = 1 / max_(fabsf(den), floor), change = -product * inverse;
  const bool by_floor = !(fabsf(den) > floor);
  return {inverse, by_floor ? 0 : den > 0 ? change : -change, by_floor ? change : 0};
}

}  // namespace occam::kernels
