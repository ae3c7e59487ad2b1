#pragma once
// Gates as transposed products, W x': rows are channels, and the two columns that a lane of the result holds
// of every 8 are two neighbouring positions of one unit (an image, or a segment of one), so that a lane walks
// along the tokens of its unit by itself: column 2u + e of product j is position 2j + e of unit u.
#include "core/cuda/mma.cuh"
#include "ops/diagonal_scan/cells.cuh"

namespace occam::kernels {

constexpr int kWidth = 64, kUnits = 4;
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

/// d = a b + c: the first product of a sum takes the bias as it lies in registers.
__device__ __forceinline__ void mma_from(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                         const float (&c)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%10,%11,%11};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]));
}

/// Left operands of 16 rows of a matrix of 64 columns `stride` apart, rows by channel_of_row.
__device__ __forceinline__ void load_left(uint32_t (&a)[4][4], const bf16* rows, int64_t stride) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int c = 0; c < 2; ++c)
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        a[k][2 * half + c] = *reinterpret_cast<const uint32_t*>(
            rows + channel_of_row(lane / 4 + 8 * c) * stride + 16 * k + 8 * half + 2 * (lane % 4));
}

/// Columns of product j: offset in a stage of the row that the lane passes to ldmatrix for 16-byte unit k8 +
/// lane / 8. A stage holds [units][positions] rows of 64 channels, the 16-byte unit i of a row at i ^ (2 unit
/// + parity).
__device__ __forceinline__ int column_offset(int j, int k8) {
  const int lane = int(threadIdx.x) % 32;
  return (lane % 8 / 2 * kPositions + lane % 2 + 2 * j) * 128 + (((k8 + lane / 8) ^ (lane % 8)) << 4);
}
/// Where lane l puts its four channels of position 2j + (l / 4) % 2 of unit l / 8, after transposed().
__device__ __forceinline__ int place_offset(int j, int warp) {
  const int lane = int(threadIdx.x) % 32;
  return (lane / 8 * kPositions + 2 * j + lane / 4 % 2) * 128 +
         (((2 * warp + lane % 4 / 2) ^ (lane / 4)) << 4) + lane % 2 * 8;
}

/// Gates of product j from a stage.
template <int kParts>
__device__ __forceinline__ void gates_of_columns(float (&gate)[kParts][4], const uint8_t* stage, int j,
                                                 const uint32_t (&weight)[kParts][4][4],
                                                 const float (&bias)[kParts][2]) {
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    uint32_t x[4];
    ldmatrix(x, reinterpret_cast<const bf16*>(stage + column_offset(j, 2 * k)));
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (k == 0)
        mma_from(gate[i], weight[i][k], x[0], x[1], bias[i]);
      else
        mma_bf16(gate[i], weight[i][k], x[0], x[1]);
      mma_bf16(gate[i], weight[i][k + 1], x[2], x[3]);
    }
  }
}

}  // namespace occam::kernels
