// Gates by tensor cores and the scan of what they give, without gates in memory, and the projection of both
// directions' states as well, without those. A block is a head, four units (head.cuh) and one direction, or
// with the projection one after the other: the first leaves its share of the result in y, the second adds its
// own. Its four warps have 16 channels each. With the projection the weights stay in registers as left
// operands.
#include "core/cuda/launch.h"
#include "ops/diagonal_scan/head.cuh"

namespace occam::kernels {

namespace {

enum class Pass { states, project, sums };  // sums: what segments leave for each other, not y

constexpr int kShares = 8;  // of y with the projection: used one step later, and stored after another

/// Without the projection weights lie in shared memory, so that fewer registers let more blocks run on a
/// multiprocessor: six of minGRU, four of minLSTM, which runs faster held to what five would have.
template <Pass kPass>
constexpr bool kShared = kPass != Pass::project;
template <class Cell, Pass kPass>
constexpr int kBlocks = !kShared<kPass>     ? 3
                        : Cell::kParts == 2 ? 6
                                            : 5;
/// Stages of x in shared memory: those under way and the one in use.
template <class Cell, Pass kPass>
constexpr int kInputs = kShared<kPass>&& Cell::kParts == 2 ? 3 : 4;
template <class Cell, Pass kPass>
constexpr int kWeights = kShared<kPass>* Cell::kParts* kLeft;  // bytes
template <class Cell, Pass kPass>
constexpr int kBytes = kWeights<Cell, kPass> +
                       (kInputs<Cell, kPass> + 2 + (kPass == Pass::project ? kShares : 0)) * kTile;

#ifdef OCCAM_WARPGROUP

/// The gates of a stage, or a projection: sum[part][column] (+)= left[part] x'.
template <int kParts>
__device__ __forceinline__ void products(float (&sum)[kParts][16], const uint32_t (&left)[kParts][4][4],
                                         uint32_t tile) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kParts; ++i)
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_registers(sum[i], left[i][k], operand(tile) + k * kStepAlong, k > 0);
  wgmma_commit();
}

template <class Cell, Pass kPass>
__device__ __forceinline__ void head_scan(const HeadScan& a, const Segments& segments,
                                          const SegmentSums& sums) {
  extern __shared__ __align__(1024) uint8_t shared[];
  constexpr int kParts = Cell::kParts;
  constexpr bool kProject = kPass == Pass::project, kSums = kPass == Pass::sums;
  constexpr int kStages = kInputs<Cell, kPass>, kAhead = kStages - 1;
  const int lane = int(threadIdx.x) % 32, warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  const unsigned heads = unsigned(a.s.h), group = blockIdx.x / heads;
  const int head = int(blockIdx.x - group * heads);
  const uint32_t weights = shared_address(shared), room = weights + kWeights<Cell, kPass>,
                 columns = room + columns_of(warp);
  const Copied copied;
  uint8_t* const mine_in =
      shared + kWeights<Cell, kPass> + swizzled(copied.row, copied.piece);  // of what it copies
  auto input = [&](int step) { return int(unsigned(step) % kStages) * kTile; };
  auto states = [&](int step) { return (kStages + (step & 1)) * kTile; };
  auto share = [&](int step) { return (kStages + 2 + (step & (kShares - 1))) * kTile; };

  const Unit from = unit_of(a.s, segments, group * kUnits + copied.unit),
             mine = unit_of(a.s, segments, group * kUnits + lane % kUnits);
  // Nobody asks for the sums of a direction's last segment.
  const bool spare = kSums && mine.segment == (blockIdx.y == 0 ? int(segments.count) - 1 : 0);
  const int longest = __reduce_max_sync(0xffffffffu, spare ? 0 : mine.length),
            steps = (longest + kPositions - 1) / kPositions;
  const int channel = warp * 16 + lane / 4;
  const int64_t chains = a.s.chains();

  for (int direction = kProject ? 0 : int(blockIdx.y); direction < (kProject ? 2 : int(blockIdx.y) + 1);
       ++direction) {
    const Walk walk(from, direction == 1);
    Rows x(a.x, walk, copied, a.s.h, head);
    Rows y(a.y, walk, copied, kProject ? a.s.h : 2 * a.s.h, kProject ? head : 2 * head + direction);
    Rows other = y;  // the share of direction 0, one stage behind x
    auto copy_stage = [&](int step) {
      x.load(mine_in + input(step));
      if (kProject && direction == 1 && step > 0) other.load(mine_in + share(step - 1));
      copies_commit();
    };
    auto store_stage = [&](int step) {
      if (kSums || step < 0) return;
      if (kProject)
        y.store(mine_in + share(step));
      else
        y.template store<true>(mine_in + states(step));
    };
    const int64_t which = direction * a.s.h + head;
    if (kShared<kPass>) copy_weights<kParts>(shared, a.weight, which, kGroup);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) copy_stage(i);

    uint32_t weight[kParts][4][4], project[1][4][4];
    const Cell cell = load_cell<Cell>(a.bias, which, channel);
    if (!kShared<kPass>)
#pragma unroll
      for (int i = 0; i < kParts; ++i)
        load_left(weight[i], a.weight + ((which * kParts + i) * kWidth + warp * 16) * kWidth, kWidth);
    float start[2] = {};  // the projection's bias
    if (kProject) {
      load_left(project[0], a.project + (head * kWidth + warp * 16) * 2 * kWidth + direction * kWidth,
                2 * kWidth);
      if (direction == 0 && a.project_bias != nullptr)
#pragma unroll
        for (int c = 0; c < 2; ++c) start[c] = to_acc(a.project_bias[head * kWidth + channel + 8 * c]);
    }

    // The states of the lane's two channels.
    const int64_t chain = ((mine.image * a.s.h + head) * 2 + direction) * kWidth + channel;
    float h[2] = {}, product[2] = {1, 1};
    if (!kSums && mine.exists) {
      const int before = direction == 0 ? mine.segment : int(segments.count) - 1 - mine.segment;
      for (int k = 0; k < before; ++k) {
        const int64_t i = (direction == 0 ? k : int(segments.count) - 1 - k) * chains + chain;
#pragma unroll
        for (int c = 0; c < 2; ++c) h[c] = sums.product[i + 8 * c] * h[c] + sums.state[i + 8 * c];
      }
    }

    // Step s scans stage s, projects stage s - 1 and stores the stage before that (without projection s - 1).
    // At both ends products of what is there by chance are made as well and left alone.
    for (int step = 0; step < steps + int(kProject); ++step) {
      copies_wait<kAhead - 1>();
      fence_async();
      __syncthreads();
      copy_stage(step + kAhead);
      store_stage(step - 1 - int(kProject));
      float result[1][16], gate[kParts][16];
      if (kProject) products<1>(result, project, room + states(step - 1));
      if (!kShared<kPass>)
        products<kParts>(gate, weight, room + input(step));
      else
        gate_products(gate, weights, room + input(step));
      if (kProject) {
        wgmma_wait<1>();
        pin(result[0]);
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const uint32_t at = columns + share(step - 1) + pair * kPair;
          uint32_t sum[4];
          if (direction == 1) ldmatrix_transposed_at(sum, at);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float* r = &result[0][8 * pair + 2 * i];
            if (direction == 0)
              sum[i] = pack_bf16(r[0] + start[i % 2], r[1] + start[i % 2]);
            else
              sum[i] = pack_bf16(r[0] + low(sum[i]), r[1] + high(sum[i]));
          }
          stmatrix_transposed(at, sum);
        }
      }
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < kParts; ++i) pin(gate[i]);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        float state[2][4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {  // positions
          const int at = 8 * pair + n / 2 * 4 + n % 2;
          float p[3][2], keep[2];
#pragma unroll
          for (int i = 0; i < kParts; ++i) p[i][0] = gate[i][at], p[i][1] = gate[i][at + 2];
          const float before[2] = {h[0], h[1]};
          cell.step(p, h, keep);
          const bool valid = !kSums || step * kPositions + pair * 4 + n < mine.length;
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            if (kSums) h[c] = valid ? h[c] : before[c], product[c] *= valid ? keep[c] : 1.0f;
            state[c][n] = h[c];
          }
        }
        if (kSums) continue;
        const uint32_t four[4] = {pack_bf16(state[0][0], state[0][1]), pack_bf16(state[1][0], state[1][1]),
                                  pack_bf16(state[0][2], state[0][3]), pack_bf16(state[1][2], state[1][3])};
        stmatrix_transposed(columns + states(step) + pair * kPair, four);
      }
    }
    if (kSums && mine.exists)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int64_t i = mine.segment * chains + chain + 8 * c;
        sums.product[i] = product[c], sums.state[i] = h[c];
      }
    copies_wait<0>();
    __syncthreads();
    store_stage(steps - 1);
    __syncthreads();  // stages and shares are free, y is written
  }
}
#endif

template <class Cell, Pass kPass>
__global__ void __launch_bounds__(kGroup, kBlocks<Cell, kPass>)
    head_scan_fwd_kernel(HeadScan a, Segments segments, SegmentSums sums) {
#ifdef OCCAM_WARPGROUP
  head_scan<Cell, kPass>(a, segments, sums);
#endif
}

template <class Cell, Pass kPass>
void launch(const HeadScan& a, const Segments& segments, float* workspace, void* stream) {
  const SegmentSums sums{workspace, workspace + segments.count * a.s.chains()};
  const int64_t units = a.s.b * segments.count;
  const unsigned blocks = grid_of_blocks(a.s.h * div_up<int64_t>(units, kUnits));
  auto kernel = head_scan_fwd_kernel<Cell, kPass>;
  allow_shared(kernel, "head_scan_fwd", kBytes<Cell, kPass>);
  kernel<<<dim3(blocks, kPass == Pass::project ? 1 : 2), kGroup, kBytes<Cell, kPass>, as_stream(stream)>>>(
      a, segments, sums);
  check_launch("head_scan_fwd", stream);
}
template <class Cell>
void launch(const HeadScan& a, float* workspace, void* stream) {
  const Segments segments = head_segments(a.s, a.project != nullptr ? 1 : 2);
  if (segments.count > 1) launch<Cell, Pass::sums>(a, segments, workspace, stream);
  if (a.project != nullptr)
    launch<Cell, Pass::project>(a, segments, workspace, stream);
  else
    launch<Cell, Pass::states>(a, segments, workspace, stream);
}

}  // namespace

bool head_scan_fits(const HeadScan& a) {
  return device_limits().capability == 90 && a.cell != Cell::plain && a.s.w == kWidth && a.s.b > 0 &&
         a.s.t > 0 && a.s.chains() * a.s.t < int64_t(1) << 40 &&
         aligned16(a.x, a.weight, a.bias, a.project, a.y);
}

int64_t head_scan_workspace(const HeadScan& a) {
  const Segments segments = head_segments(a.s, a.project != nullptr ? 1 : 2);
  return segments.count > 1 ? 2 * segments.count * a.s.chains() : 0;
}

void head_scan_fwd(const HeadScan& a, float* workspace, void* stream) {
  if (a.cell == Cell::min_gru)
    launch<HeadGru>(a, workspace, stream);
  else
    launch<HeadLstm>(a, workspace, stream);
}

}  // namespace occam::kernels
