// Backward of gates and scan by head in one pass: gates again by tensor cores, the scan from the other end,
// and what the gates' gradients give, dx = W' dgates and dW = dgates x', without either in memory. A block is
// a head and four units at a time (head.cuh), direction 0 of all its units before direction 1: the first
// leaves its share of dx in memory, the second adds its own. dW and the biases' gradients are sums over a
// block's units in registers, one part of a sum for each block, which a second kernel adds in their order.
#include "core/cuda/launch.h"
#include "ops/diagonal_scan/head.cuh"

namespace occam::kernels {

namespace {

constexpr int kInputs = 2;  // stages of x, y and gy in shared memory
constexpr int kShares = 4;  // of dx: used one step later, and stored after another

template <class Cell>
constexpr int kBytes = Cell::kParts* kLeft + (3 * kInputs + kShares + 2 * Cell::kParts) * kTile;
template <class Cell>
constexpr int kBlocks = Cell::kParts == 2 ? 3 : 2;  // on a multiprocessor

/// Sums over the units of a block, for each block of a head: gradients of [2,h,parts 64,64] weights and
/// behind them of [2,h,parts 64] biases.
struct Parts {
  float* sums;
  int64_t weights;
  OCCAM_HD int64_t size() const { return weights + weights / kWidth; }
};

#ifdef OCCAM_WARPGROUP

template <class Cell, bool kSums>
__device__ __forceinline__ void head_scan_back(const HeadScanBackward& a, const Segments& segments,
                                               const SegmentSums& sums, const Parts& parts) {
  extern __shared__ __align__(1024) uint8_t shared[];
  constexpr int kParts = Cell::kParts;
  const int lane = int(threadIdx.x) % 32, warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  const unsigned heads = unsigned(a.s.h), place = blockIdx.x / heads, places = gridDim.x / heads;
  const int head = int(blockIdx.x - place * heads);
  const unsigned groups = unsigned((a.s.b * segments.count + kUnits - 1) / kUnits);
  const uint32_t room = shared_address(shared), columns = room + columns_of(warp);
  uint8_t* const mine_in =
      shared + swizzled(int(threadIdx.x) / 8, int(threadIdx.x) % 8);  // of what it copies
  constexpr int kStages = kParts * kLeft;
  auto input = [&](int step, int which) { return kStages + ((step & (kInputs - 1)) * 3 + which) * kTile; };
  auto gradient = [&](int step) { return kStages + (3 * kInputs + (step & 1) * kParts) * kTile; };
  auto share = [&](int step) {
    return kStages + (3 * kInputs + 2 * kParts + (step & (kShares - 1))) * kTile;
  };
  const Copied copied;
  const int channel = warp * 16 + lane / 4;
  const int64_t chains = a.s.chains();

  for (int direction = kSums ? int(blockIdx.y) : 0; direction < (kSums ? int(blockIdx.y) + 1 : 2);
       ++direction) {
    const int64_t which = direction * a.s.h + head;
    const Cell cell = load_cell<Cell>(a.bias, which, channel);
#pragma unroll
    for (int i = 0; i < kParts * kLeft / 16 / kGroup; ++i) {  // rows are gates
      const int row = i * kGroup / 8 + int(threadIdx.x) / 8;
      copy_async16(shared + swizzled(row, copied.piece),
                   a.weight + (which * kParts * kWidth + row) * kWidth + copied.piece * 8, true);
    }
    float g_weight[kParts][32] = {}, g_bias[kParts][2] = {};

    for (unsigned group = place; group < groups; group += places) {
      const Unit from = unit_of(a.s, segments, group * kUnits + copied.unit),
                 mine = unit_of(a.s, segments, group * kUnits + lane % kUnits);
      // Nobody asks for the sums of the segment where a direction begins.
      const bool spare = kSums && mine.segment == (direction == 0 ? 0 : int(segments.count) - 1);
      const int longest = __reduce_max_sync(0xffffffffu, spare ? 0 : mine.length),
                steps = (longest + kPositions - 1) / kPositions;
      const Walk walk(from, direction == 0);
      Rows x(a.x, walk, copied, a.s.h, head), gx(a.gx, walk, copied, a.s.h, head), other = gx;
      Rows gy(a.gy, walk, copied, 2 * a.s.h, 2 * head + direction);
      // States are those of the token before in the scan, of the unit before too.
      Rows y(a.y, walk, copied, 2 * a.s.h, 2 * head + direction);
      y.look_ahead(direction == 0 ? !from.first : !from.last);
      auto copy_stage = [&](int step) {  // and of the other direction's share that of the stage before
        x.load(mine_in + input(step, 0)), gy.load(mine_in + input(step, 1));
        if (!kSums) y.load(mine_in + input(step, 2));
        if (!kSums && direction == 1 && step > 0) other.load(mine_in + share(step - 1));
        copies_commit();
      };
      auto store_stage = [&](int step) {
        if (!kSums && step >= 0) gx.store(mine_in + share(step));
      };
      copy_stage(0);

      // What comes to the lane's two channels from the step after: a dh.
      const int64_t chain = ((mine.image * a.s.h + head) * 2 + direction) * kWidth + channel;
      float d[2] = {}, product[2] = {1, 1};
      if (!kSums && mine.exists) {
        const int after = direction == 1 ? mine.segment : int(segments.count) - 1 - mine.segment;
        for (int k = 0; k < after; ++k) {
          const int64_t i = (direction == 1 ? k : int(segments.count) - 1 - k) * chains + chain;
#pragma unroll
          for (int c = 0; c < 2; ++c) d[c] = sums.product[i + 8 * c] * d[c] + sums.state[i + 8 * c];
        }
      }

      // Step s scans stage s, makes dx of stage s - 1 and stores the stage before that. At both ends products
      // of what is there by chance are made as well and left alone.
      for (int step = 0; step < steps + int(!kSums); ++step) {
        copies_wait<0>();
        fence_async();
        __syncthreads();
        copy_stage(step + 1);
        store_stage(step - 2);
        float dx[16], gate[kParts][16];
        if (!kSums) {
          wgmma_fence();
#pragma unroll
          for (int i = 0; i < kParts; ++i)
#pragma unroll
            for (int k = 0; k < 4; ++k)
              wgmma<32, true, false>(dx, operand(room + i * kLeft) + k * kStepAcross,
                                     operand(room + gradient(step - 1) + i * kTile) + k * kStepAlong,
                                     i + k > 0);
          wgmma_commit();
        }
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kParts; ++i)
#pragma unroll
          for (int k = 0; k < 4; ++k)
            wgmma<32, false, false>(gate[i], operand(room + i * kLeft) + k * kStepAlong,
                                    operand(room + input(step, 0)) + k * kStepAlong, k > 0);
        wgmma_commit();
        if (!kSums) {
          wgmma_wait<1>();
          pin(dx);
#pragma unroll
          for (int pair = 0; pair < 2; ++pair) {
            const uint32_t at = columns + share(step - 1) + pair * kPair;
            uint32_t sum[4];
            if (direction == 1) ldmatrix_transposed_at(sum, at);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const float* d = &dx[8 * pair + 2 * i];
              sum[i] =
                  direction == 0 ? pack_bf16(d[0], d[1]) : pack_bf16(d[0] + low(sum[i]), d[1] + high(sum[i]));
            }
            stmatrix_transposed(at, sum);
          }
        }
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < kParts; ++i) pin(gate[i]);
        if (step == steps) break;
        uint32_t packed[kParts][2][4];
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          uint32_t g_state[4], state[4] = {};
          ldmatrix_transposed_at(g_state, columns + input(step, 1) + pair * kPair);
          if (!kSums) ldmatrix_transposed_at(state, columns + input(step, 2) + pair * kPair);
#pragma unroll
          for (int n = 0; n < 4; ++n) {  // positions
            const int at = 8 * pair + n / 2 * 4 + n % 2;
            const bool valid = step * kPositions + pair * 4 + n < mine.length;
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
              if (!kSums || valid) d[c] = keep[c] * dh[c], product[c] *= keep[c];
#pragma unroll
              for (int i = 0; i < kParts; ++i) gate[i][at + 2 * c] = p[i][c], g_bias[i][c] += p[i][c];
            }
          }
          if (!kSums)
#pragma unroll
            for (int i = 0; i < kParts; ++i) {
#pragma unroll
              for (int r = 0; r < 4; ++r)
                packed[i][pair][r] = pack_bf16(gate[i][8 * pair + 2 * r], gate[i][8 * pair + 2 * r + 1]);
              stmatrix_transposed(columns + gradient(step) + i * kTile + pair * kPair, packed[i][pair]);
            }
        }
        if (!kSums) {
          wgmma_fence();
#pragma unroll
          for (int i = 0; i < kParts; ++i)
#pragma unroll
            for (int k = 0; k < 2; ++k)
              wgmma_registers(g_weight[i], packed[i][k], operand(room + input(step, 0)) + k * kStepAcross,
                              true);
          wgmma_commit();
          wgmma_wait<0>();
#pragma unroll
          for (int i = 0; i < kParts; ++i) pin(g_weight[i]);
        }
      }
      if (kSums && mine.exists)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int64_t i = mine.segment * chains + chain + 8 * c;
          sums.product[i] = product[c], sums.state[i] = d[c];
        }
      copies_wait<0>();
      __syncthreads();
      store_stage(steps - 1);
      __syncthreads();  // stages and shares are free, dx is written
    }
    if constexpr (!kSums) {
      float* const to = parts.sums + place * parts.size();
      const int64_t first = which * kParts * kWidth;
#pragma unroll
      for (int i = 0; i < kParts; ++i)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int64_t row = first + i * kWidth + channel + 8 * c;
#pragma unroll
          for (int n = 0; n < 8; ++n)
            *reinterpret_cast<float2*>(to + row * kWidth + 8 * n + 2 * (lane % 4)) =
                make_float2(g_weight[i][4 * n + 2 * c], g_weight[i][4 * n + 2 * c + 1]);
          float sum = g_bias[i][c];  // of the four units
          sum += __shfl_xor_sync(0xffffffffu, sum, 1);
          sum += __shfl_xor_sync(0xffffffffu, sum, 2);
          if (lane % 4 == 0) to[parts.weights + row] = sum;
        }
    }
  }
}
#endif

template <class Cell, bool kSums>
__global__ void __launch_bounds__(kGroup, kBlocks<Cell>)
    head_scan_bwd_kernel(HeadScanBackward a, Segments segments, SegmentSums sums, Parts parts) {
#ifdef OCCAM_WARPGROUP
  head_scan_back<Cell, kSums>(a, segments, sums, parts);
#endif
}

/// The sums over blocks: 128 elements a block, each in kShare parts, added in a fixed order.
constexpr int kColumns = 32, kShare = 8;
__global__ void __launch_bounds__(kColumns* kShare)
    add_parts_kernel(HeadScanBackward a, Parts parts, int places) {
  __shared__ float4 shares[kShare][kColumns];
  const int column = int(threadIdx.x) % kColumns, own = int(threadIdx.x) / kColumns;
  const int64_t i = (int64_t(blockIdx.x) * kColumns + column) * 4;
  auto add = [](float4& sum, const float4& x) { sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w; };
  float4 sum{};
  if (i < parts.size())
#pragma unroll 8
    for (int k = own; k < places; k += kShare)
      add(sum, *reinterpret_cast<const float4*>(parts.sums + k * parts.size() + i));
  shares[own][column] = sum;
  __syncthreads();
  if (own != 0 || i >= parts.size()) return;
  for (int k = 1; k < kShare; ++k) add(sum, shares[k][column]);
  const bool is_weight = i < parts.weights;
  void* const to = is_weight ? a.g_weight : a.g_bias;
  const int64_t at = is_weight ? i : i - parts.weights;
  const float four[4] = {sum.x, sum.y, sum.z, sum.w};
  for (int k = 0; k < 4; ++k)
    if (is_weight ? a.f32_weight : a.f32_bias)
      static_cast<float*>(to)[at + k] = four[k];
    else
      static_cast<bf16*>(to)[at + k] = from_acc<bf16>(four[k]);
}

int blocks_at_once(const HeadScanBackward& a) {
  return a.cell == Cell::min_gru ? kBlocks<HeadGru> : kBlocks<HeadLstm>;
}
Segments segments_of(const HeadScanBackward& a) { return head_segments(a.s, 1, blocks_at_once(a)); }

/// Blocks of a head: as many as run at once, or one for every four units.
int64_t places_of(const HeadScanBackward& a, const Segments& segments) {
  const int64_t most = device_limits().sm_count * blocks_at_once(a) / a.s.h;
  return std::clamp<int64_t>(div_up<int64_t>(a.s.b * segments.count, kUnits), 1, std::max<int64_t>(most, 1));
}

int64_t weights_of(const HeadScanBackward& a) { return 2 * a.s.h * parts_of(a.cell) * kWidth * kWidth; }

template <class Cell>
void launch(const HeadScanBackward& a, float* workspace, void* stream) {
  const Segments segments = segments_of(a);
  const int64_t places = places_of(a, segments), weights = weights_of(a);
  const Parts parts{workspace, weights};
  float* rest = workspace + places * parts.size();
  const SegmentSums sums{rest, rest + segments.count * a.s.chains()};
  if (segments.count > 1) {
    auto kernel = head_scan_bwd_kernel<Cell, true>;
    allow_shared(kernel, "head_scan_bwd", kBytes<Cell>);
    const int64_t groups = div_up<int64_t>(a.s.b * segments.count, kUnits);
    kernel<<<dim3(grid_of_blocks(a.s.h * groups), 2), kGroup, kBytes<Cell>, as_stream(stream)>>>(a, segments,
                                                                                                 sums, parts);
    check_launch("head_scan_bwd", stream);
  }
  auto kernel = head_scan_bwd_kernel<Cell, false>;
  allow_shared(kernel, "head_scan_bwd", kBytes<Cell>);
  kernel<<<grid_of_blocks(a.s.h * places), kGroup, kBytes<Cell>, as_stream(stream)>>>(a, segments, sums,
                                                                                      parts);
  check_launch("head_scan_bwd", stream);
  add_parts_kernel<<<grid_of_blocks(div_up<int64_t>(parts.size(), 4 * kColumns)), kColumns * kShare, 0,
                     as_stream(stream)>>>(a, parts, int(places));
  check_launch("head_scan_bwd_parts", stream);
}

}  // namespace

bool head_scan_fits(const HeadScanBackward& a) {
  return device_limits().capability == 90 && a.cell != Cell::plain && a.s.w == kWidth && a.s.b > 0 &&
         a.s.t > 0 && a.s.chains() * a.s.t < int64_t(1) << 40 &&
         aligned16(a.x, a.weight, a.bias, a.y, a.gy, a.gx);
}

int64_t head_scan_workspace(const HeadScanBackward& a) {
  const Segments segments = segments_of(a);
  const int64_t weights = weights_of(a), sums = segments.count > 1 ? 2 * segments.count * a.s.chains() : 0;
  return places_of(a, segments) * (weights + weights / kWidth) + sums;
}

void head_scan_bwd(const HeadScanBackward& a, float* workspace, void* stream) {
  if (a.cell == Cell::min_gru)
    launch<HeadGru>(a, workspace, stream);
  else
    launch<HeadLstm>(a, workspace, stream);
}

}  // namespace occam::kernels
