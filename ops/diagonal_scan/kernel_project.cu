// Gates, scan and the projection by head of both directions in one: states never reach memory. A block is a
// head and four images; four warps have direction 0, four direction 1, each 16 channels (head.cuh). States of
// a stage pass through shared memory, where they are the right operand of the projection P' h'. The
// directions meet a token at different times: the first leaves its share of the result in y, the second adds
// its own.
#include "core/cuda/launch.h"
#include "ops/diagonal_scan/head.cuh"
#include "ops/diagonal_scan/kernel.h"

namespace occam::kernels {

namespace {

constexpr int kThreads = 256, kHalf = 128;  // kHalf: of a direction
constexpr int kBytes = 2 * (kStages + 2) * kStageBytes;

__device__ __forceinline__ float low(uint32_t two) { return __uint_as_float(two << 16); }
__device__ __forceinline__ float high(uint32_t two) { return __uint_as_float(two & 0xffff0000u); }

template <class Cell>
__global__ void __launch_bounds__(kThreads, 1) head_scan_project_mma(HeadProjection a) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int kParts = Cell::kParts, kTiles = kPositions / 2;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32 % 4;
  const int direction = int(threadIdx.x) / kHalf, thread = int(threadIdx.x) % kHalf;
  const unsigned heads = unsigned(a.s.h), group = blockIdx.x / heads;
  const int head = int(blockIdx.x - group * heads), t = int(a.s.t);
  const int64_t images = min(int64_t(kUnits), a.s.b - int64_t(group) * kUnits), row = a.s.h * kWidth;
  const int64_t step_of_row = direction == 0 ? row : -row;
  uint8_t* const stages = shared + direction * kStages * kStageBytes;
  uint8_t* const states = shared + 2 * kStages * kStageBytes + direction * 2 * kStageBytes;
  // Offset of position p of an image, in x and in y alike.
  auto at = [&](int image, int p) {
    return ((int64_t(group) * kUnits + image) * t + (direction == 0 ? 0 : t - 1)) * row + head * kWidth +
           p * step_of_row;
  };

  // A thread copies 16 bytes of one position of each image.
  const int copy_position = thread / 8;
  const bf16* from = a.x + at(0, copy_position) + thread % 8 * 8;
  int left = t - copy_position;
  uint8_t* const copied = stages + copy_position * 128 + ((thread % 8 ^ copy_position % 2) << 4);
  auto copy_stage = [&](int step) {
    uint8_t* to = copied + step % kStages * kStageBytes;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      // Key 2 u + parity: the difference to unit 0's is 2 u in bits that parity does not touch.
      uint8_t* place16 = reinterpret_cast<uint8_t*>(reinterpret_cast<uintptr_t>(to) ^ (2 * u << 4));
      const bool valid = left > 0 && u < images;
      copy_async16(place16 + u * kPositions * 128, valid ? from + u * t * row : a.x, valid);
    }
    from += kPositions * step_of_row;
    left -= kPositions;
  };
  const int steps = (t + kPositions - 1) / kPositions;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < steps) copy_stage(i);
    copies_commit();
  }

  uint32_t weight[kParts][4][4], project[1][4][4];
  float bias[kParts][2], start[1][2], h[2] = {};
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int64_t first = ((direction * a.s.h + head) * kParts + i) * kWidth + warp * 16;
#pragma unroll
    for (int c = 0; c < 2; ++c) bias[i][c] = to_acc(a.bias[first + channel_of_row(lane / 4 + 8 * c)]);
    load_left(weight[i], a.weight + first * kWidth, kWidth);
  }
  load_left(project[0], a.project + (head * kWidth + warp * 16) * 2 * kWidth + direction * kWidth,
            2 * kWidth);
#pragma unroll
  for (int c = 0; c < 2; ++c)
    start[0][c] = direction == 0 && a.project_bias != nullptr
                      ? to_acc(a.project_bias[head * kWidth + warp * 16 + channel_of_row(lane / 4 + 8 * c)])
                      : 0.0f;

  // The lane stores four channels of position (lane / 4) % 2 of every two of image lane / 8.
  const int parity = lane / 4 % 2;
  const bool stores = lane / 8 < images;
  bf16* const y = a.y + at(lane / 8, parity) + warp * 16 + 4 * (lane % 4);
  for (int step = 0; step <= steps; ++step) {
    copies_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) copy_stage(step + kStages - 1);
    copies_commit();
    // The stage before this one is projected now. Its positions from `last` on are behind the end. A token
    // that the other direction meets in the same stage is left to direction 1, after a barrier.
    const int done = step - 1, first_position = done * kPositions + parity, last = t;
    const bool meets = done >= 0 && 32 * done <= t - 1 && 32 * done >= t - 31;
    uint2 share[kTiles];
    auto is_second = [&](int p) {
      const int other = (t - 1 - p) / kPositions;
      return other < done || (other == done && direction == 1);
    };
    auto fetch = [&] {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const int p = first_position + 2 * j;
        share[j] = make_uint2(0, 0);
        if (stores && p < last && is_second(p))
          share[j] = __ldcg(reinterpret_cast<const uint2*>(y + (p - parity) * step_of_row));
      }
    };
    if (done >= 0 && !meets) fetch();
    if (step < steps) {
      const uint8_t* stage = stages + step % kStages * kStageBytes;
      uint8_t* to = states + step % 2 * kStageBytes;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        float gate[kParts][4], state[4];
        gates_of_columns(gate, stage, j, weight, bias);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float v[3];
#pragma unroll
          for (int i = 0; i < kParts; ++i) v[i] = gate[i][e];
          Cell::template step<true>(v, h[e / 2]);
          state[e] = h[e / 2];
        }
        *reinterpret_cast<uint2*>(to + place_offset(j, warp)) =
            make_uint2(transposed(pack_bf16(state[0], state[1])), transposed(pack_bf16(state[2], state[3])));
      }
    }
    if (done < 0) continue;
    const uint8_t* stage = states + done % 2 * kStageBytes;
    auto result = [&](int j) {  // with the other direction's share where that came first
      float out[1][4];
      gates_of_columns(out, stage, j, project, start);
      const uint32_t a0 = transposed(share[j].x), a1 = transposed(share[j].y);
      return make_uint2(transposed(pack_bf16(out[0][0] + low(a0), out[0][1] + high(a0))),
                        transposed(pack_bf16(out[0][2] + low(a1), out[0][3] + high(a1))));
    };
    auto store = [&](int j, const uint2& four, bool wanted) {
      const int p = first_position + 2 * j;
      if (stores && p < last && wanted) *reinterpret_cast<uint2*>(y + (p - parity) * step_of_row) = four;
    };
    if (!meets) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) store(j, result(j), true);
      continue;
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      share[j] = make_uint2(0, 0);
      store(j, result(j), !is_second(first_position + 2 * j));
    }
    __syncthreads();
    fetch();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) store(j, result(j), is_second(first_position + 2 * j));
  }
}

template <class Cell>
void launch(const HeadProjection& a, void* stream) {
  auto kernel = head_scan_project_mma<Cell>;
  allow_shared(kernel, "head_scan_project_mma", kBytes);
  kernel<<<grid_of_blocks(a.s.h * div_up<int64_t>(a.s.b, kUnits)), kThreads, kBytes, as_stream(stream)>>>(a);
  check_launch("head_scan_project_mma", stream);
}

}  // namespace

bool head_scan_project_fits(const HeadProjection& a) {
  const DeviceLimits& limits = device_limits();
  return limits.capability >= 80 && limits.shared_bytes_opt_in >= kBytes && a.cell != Cell::plain &&
         a.s.w == kWidth && a.s.h * div_up<int64_t>(a.s.b, kUnits) >= limits.sm_count && a.s.t < 1 << 30 &&
         aligned16(a.x, a.weight, a.bias, a.project, a.y);
}

void head_scan_project(const HeadProjection& a, void* stream) {
  if (a.cell == Cell::min_gru)
    launch<MinGruCell>(a, stream);
  else
    launch<MinLstmCell>(a, stream);
}

}  // namespace occam::kernels
