// Backward of gates and scan by head in one pass: gates again by tensor cores, the scan from the other end,
// and what the gates' gradients give, dx = W' dgates and dW = dgates x', without either in memory. A block
// has a head and a direction. Three of its warpgroups scan, four units each (head.cuh), and leave the gates'
// gradients in shared memory; the fourth makes dx and dW of them. It runs in two phases, launches: a
// direction has one half of the units in the first and the other half in the second. The first leaves its
// share of dx in memory, the second adds the other direction's. dW and the biases' gradients are sums over a
// block's units in registers, one part of a sum for each block, which a last kernel adds in their order.
#include "core/cuda/launch.h"
#include "ops/diagonal_scan/head_back.cuh"

namespace occam::kernels {

namespace {

/// Sums over the units of a block, for each block of a head and direction: gradients of [2,h,parts 64,64]
/// weights and behind them of [2,h,parts 64] biases.
struct Parts {
  float* sums;
  int64_t weights;
  OCCAM_HD int64_t size() const { return weights + weights / kWidth; }
};

#ifdef OCCAM_WARPGROUP

/// What segments leave for each other, a block for four units of a head and a direction.
template <class Cell>
__device__ __forceinline__ void head_scan_back_sums(const HeadScanBackward& a, const Segments& segments,
                                                    const SegmentSums& sums) {
  extern __shared__ __align__(1024) uint8_t shared[];
  constexpr int kParts = Cell::kParts;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, direction = int(blockIdx.y);
  const unsigned heads = unsigned(a.s.h), group = blockIdx.x / heads;
  const int head = int(blockIdx.x - group * heads), channel = warp * 16 + lane / 4;
  const int64_t which = direction * a.s.h + head;
  const uint32_t room = shared_address(shared), columns = room + columns_of(warp);
  const Copied copied;
  uint8_t* const mine_in = shared + swizzled(copied.row, copied.piece);
  auto input = [&](int step, int i) { return kParts * kLeft + ((step & 1) * 2 + i) * kTile; };
  const Unit from = unit_of(a.s, segments, group * kUnits + copied.unit),
             mine = unit_of(a.s, segments, group * kUnits + lane % kUnits);
  // Nobody asks for the sums of the segment where a direction begins.
  const bool spare = mine.segment == (direction == 0 ? 0 : int(segments.count) - 1);
  const int longest = __reduce_max_sync(0xffffffffu, spare ? 0 : mine.length),
            steps = (longest + kPositions - 1) / kPositions;
  const Walk walk(from, direction == 0);
  Rows x(a.x, walk, copied, a.s.h, head), gy(a.gy, walk, copied, 2 * a.s.h, 2 * head + direction);
  auto copy_stage = [&](int step) {
    x.load(mine_in + input(step, 0)), gy.load(mine_in + input(step, 1));
    copies_commit();
  };
  copy_weights<kParts>(shared, a.weight, which, kGroup);
  copy_stage(0);
  const Cell cell = load_cell<Cell>(a.bias, which, channel);
  float d[2] = {}, product[2] = {1, 1}, unused[kParts][2] = {};
  for (int step = 0; step < steps; ++step) {
    copies_wait<0>();
    fence_async();
    __syncthreads();
    copy_stage(step + 1);
    float gate[kParts][16];
    gate_products(gate, room, room + input(step, 0));
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kParts; ++i) pin(gate[i]);
    scan_stage<Cell, true>(cell, gate, columns + input(step, 1), 0, mine.length - step * kPositions, d,
                           product, unused);
  }
  copies_wait<0>();
  if (!mine.exists) return;
  const int64_t chain = ((mine.image * a.s.h + head) * 2 + direction) * kWidth + channel;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int64_t i = mine.segment * a.s.chains() + chain + 8 * c;
    sums.product[i] = product[c], sums.state[i] = d[c];
  }
}

template <class Cell>
__device__ __forceinline__ void head_scan_back(const HeadScanBackward& a, const Segments& segments,
                                               const SegmentSums& sums, const Parts& parts,
                                               const Phase& phase) {
  extern __shared__ __align__(1024) uint8_t shared[];
  constexpr int kParts = Cell::kParts;
  const Block<Cell> block(a, phase, shared_address(shared));
  const int warps = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0), own = warps / 4, warp = warps % 4;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2 * kScanners; ++i) barrier_init(block.room + kBarriers<Cell> + i * 8, 4);
    barrier_init_fence();
  }
  copy_weights<kParts>(shared, a.weight, block.which, kThreads);
  copies_commit();
  copies_wait<0>();
  fence_async();
  __syncthreads();
  const int64_t part = int64_t(phase.second) * phase.places + block.place;
  float* const to = parts.sums + part * parts.size();
  if (own < kScanners) {
    fewer_registers<112>();
    scan_units<Cell>(a, segments, sums, phase, block, shared, own, warp);
  } else {
    more_registers<160>();
    make_products<Cell>(a, segments, phase, block, warp, to);
  }
  __syncthreads();
  const float* const g_bias = reinterpret_cast<const float*>(shared + kSums<Cell>);
  for (int i = int(threadIdx.x); i < kParts * kWidth; i += kThreads)
    to[parts.weights + block.which * kParts * kWidth + i] =
        g_bias[i] + g_bias[kParts * kWidth + i] + g_bias[2 * kParts * kWidth + i];
}
#endif

template <class Cell>
__global__ void __launch_bounds__(kGroup)
    head_scan_bwd_sums_kernel(HeadScanBackward a, Segments segments, SegmentSums sums) {
#ifdef OCCAM_WARPGROUP
  head_scan_back_sums<Cell>(a, segments, sums);
#endif
}
template <class Cell>
__global__ void __launch_bounds__(kThreads, 1)
    head_scan_bwd_kernel(HeadScanBackward a, Segments segments, SegmentSums sums, Parts parts, Phase phase) {
#ifdef OCCAM_WARPGROUP
  head_scan_back<Cell>(a, segments, sums, parts, phase);
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

Segments segments_of(const HeadScanBackward& a) { return head_segments(a.s, 1, kScanners); }

/// Blocks of a head and direction: as many as run at once, or one for every three groups of units.
Phase first_phase(const HeadScanBackward& a, const Segments& segments) {
  const int64_t groups = div_up<int64_t>(a.s.b * segments.count, kUnits), half = div_up<int64_t>(groups, 2);
  const int64_t most = std::max<int64_t>(device_limits().sm_count / (2 * a.s.h), 1);
  return {unsigned(half), unsigned(groups),
          unsigned(std::min<int64_t>(div_up<int64_t>(half, kScanners), most))};
}
int64_t parts_count(const Phase& phase) { return 2 * int64_t(phase.places); }

int64_t weights_of(const HeadScanBackward& a) { return 2 * a.s.h * parts_of(a.cell) * kWidth * kWidth; }

template <class Cell>
void launch(const HeadScanBackward& a, float* workspace, void* stream) {
  const Segments segments = segments_of(a);
  Phase phase = first_phase(a, segments);
  const Parts parts{workspace, weights_of(a)};
  float* rest = workspace + parts_count(phase) * parts.size();
  const SegmentSums sums{rest, rest + segments.count * a.s.chains()};
  if (segments.count > 1) {
    auto kernel = head_scan_bwd_sums_kernel<Cell>;
    const int bytes = Cell::kParts * kLeft + 4 * kTile;
    allow_shared(kernel, "head_scan_bwd_sums", bytes);
    kernel<<<dim3(grid_of_blocks(a.s.h * phase.groups), 2), kGroup, bytes, as_stream(stream)>>>(a, segments,
                                                                                                sums);
    check_launch("head_scan_bwd_sums", stream);
  }
  auto kernel = head_scan_bwd_kernel<Cell>;
  allow_shared(kernel, "head_scan_bwd", kBytes<Cell>);
  for (bool second : {false, true}) {
    phase.second = second;
    kernel<<<grid_of_blocks(2 * a.s.h * phase.places), kThreads, kBytes<Cell>, as_stream(stream)>>>(
        a, segments, sums, parts, phase);
    check_launch("head_scan_bwd", stream);
  }
  add_parts_kernel<<<grid_of_blocks(div_up<int64_t>(parts.size(), 4 * kColumns)), kColumns * kShare, 0,
                     as_stream(stream)>>>(a, parts, int(parts_count(phase)));
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
  return parts_count(first_phase(a, segments)) * (weights + weights / kWidth) + sums;
}

void head_scan_bwd(const HeadScanBackward& a, float* workspace, void* stream) {
  if (a.cell == Cell::min_gru)
    launch<HeadGru>(a, workspace, stream);
  else
    launch<HeadLstm>(a, workspace, stream);
}

}  // namespace occam::kernels
