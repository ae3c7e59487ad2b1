// Forward for rows of at most 208 tokens and d = 64: a warpgroup has 64 queries and all their scores in
// registers, (from 145 tokens on in two parts), so that there is next to nothing to rescale.
#include "core/cuda/chain.h"
#include "core/cuda/cluster.cuh"
#include "ops/attention/forward.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

/// Blocks that share a multiprocessor: 128 registers a thread.
template <int kTokens>
constexpr int kBlocks = kGroups<kTokens> <= 2 ? 4 / kGroups<kTokens> : 1;
template <int kTokens>
constexpr int64_t bytes_of(int buffers) {
  return buffers * 3 * kTokens * kSwizzleColumns * 2 + kGroups<kTokens> * kTokens * 4 + 1024;
}

/// Grid (blocks, 1) with all warpgroups of a head in a block, or (heads, warpgroups) with one. Warpgroups do
/// not wait for each other: each goes on to the next head when that has come, and the last one, which has the
/// fewest queries, has the head after that copied as soon as all have left the buffer.
template <int kTokens>
__global__ void __launch_bounds__(kGroups<kTokens>* kGroup, kBlocks<kTokens>)
    attention_short_fwd(Attention<bf16> a, int64_t heads, const __grid_constant__ TensorMap qkv,
                        const __grid_constant__ TensorMap queries, const __grid_constant__ TensorMap y) {
#ifdef OCCAM_WARPGROUP
  constexpr int kTile = kTokens * kSwizzleColumns;
  bf16* tiles = reinterpret_cast<bf16*>(aligned_room());  // [2][q, k, v], or [1] where a block has one head
  const int t = int(a.t);
  const int warp = warp_here(), group = warp / 4, first = (int(blockIdx.y) + group) * 64;
  const int row = first + warp % 4 * 16;  // of the warp
  float* bias = reinterpret_cast<float*>(tiles + (heads > gridDim.x ? 6 : 3) * kTile) + group * kTokens;
  __shared__ uint64_t barriers[4];
  const uint32_t full = shared_address(barriers), empty = full + 16;  // 8 bytes a buffer
  const float factor = a.scale * kLog2e;
  const bool with_bias = a.key_mask != nullptr || t <= kTokens - 16 || !(factor > 0);
  const bool copies = threadIdx.x == blockDim.x - kGroup;
  const bool split = gridDim.y > 1;
  // A block that shares its head copies its own 64 queries and keys first: values come while it has scores.
  auto copy_split = [&](int64_t head) {
    const int column = int(uint32_t(head) % uint32_t(a.h)) * kSwizzleColumns,
              width = int(a.h) * kSwizzleColumns;
    const int image = int(uint32_t(head) / uint32_t(a.h));
    barrier_expect(full, (64 * kSwizzleColumns + kTile) * 2);
    load_box(shared_address(tiles), &queries, column, first, image, full);
    load_box(shared_address(tiles + kTile), &qkv, column + width, 0, image, full);
    barrier_expect(full + 8, kTile * 2);
    load_box(shared_address(tiles + 2 * kTile), &qkv, column + 2 * width, 0, image, full + 8);
  };
  auto copy = [&](int64_t head, int buffer) {
    barrier_expect(full + 8 * buffer, 3 * kTile * 2);
    for (int part = 0; part < 3; ++part)
      load_box(shared_address(tiles + (buffer * 3 + part) * kTile), &qkv,
               (part * int(a.h) + int(uint32_t(head) % uint32_t(a.h))) * kSwizzleColumns, 0,
               int(uint32_t(head) / uint32_t(a.h)), full + 8 * buffer);
  };

  if (copies) {
    for (int buffer = 0; buffer < 2; ++buffer) {
      barrier_init(full + 8 * buffer, 1);
      barrier_init(empty + 8 * buffer, int(blockDim.x) / kWarp);
    }
    barrier_init_fence();
  }
  grid_wait();
  grid_release_next();
  if (copies && split) {
    copy_split(blockIdx.x);
  } else if (copies) {
    copy(blockIdx.x, 0);
    if (blockIdx.x + gridDim.x < heads) copy(blockIdx.x + gridDim.x, 1);
  }
  __syncthreads();
  int turn = 0;
  for (int64_t head = blockIdx.x; head < heads; head += gridDim.x, ++turn) {
    const int buffer = same_for_warp(turn % 2), parity = turn / 2 % 2;
    barrier_wait(full + 8 * buffer, parity);
    if (first < t) {
      bf16* q = tiles + buffer * 3 * kTile;  // of query 0, also where only those from `first` on are there
      const Head at = head_of(a, head);
      if (with_bias) {
        copy_bias<kTokens>(bias, at.mask, t, int(threadIdx.x) % kGroup, kGroup);
        named_sync(group + 1, kGroup);
      }
      const uint32_t k = operand(shared_address(q + kTile)), v = operand(shared_address(q + 2 * kTile));
      if (split) q -= first * kSwizzleColumns;
      const uint32_t own = operand(shared_address(q + first * kSwizzleColumns));
      const uint32_t values = split ? full + 8 : 0;
      // All scores at once would leave too few registers beside them at 208.
      constexpr int kPart = kTokens > 144 ? 128 : kTokens, kCheck = kPart < kTokens ? 0 : 16;
      Rows r = {};
      attend<kPart, true, kCheck>(r, own, k, v, factor, with_bias ? bias : nullptr, t, row < t, values);
      if constexpr (kPart < kTokens) {
        constexpr uint32_t kOn = kPart / 16 * kStepAcross;
        attend<kTokens - kPart, false, 16>(r, own, k + kOn, v + kOn, factor,
                                           with_bias ? bias + kPart : nullptr, t - kPart, row < t);
      }
      named_sync(group + 1, kGroup);  // no warp reads queries any more: results take their place
      if (row < t) {
        float inverse[2];
        finish_rows(r, row, a.lse + at.stat, t, inverse);
        copy_rows_back(r.o, inverse[0], inverse[1], q, row, &y,
                       int(uint32_t(head) % uint32_t(a.h)) * kSwizzleColumns,
                       int(uint32_t(head) / uint32_t(a.h)));
        store_wait_read<0>();
      }
    }
    __syncwarp();
    if (threadIdx.x % kWarp == 0) barrier_arrive(empty + 8 * buffer);
    const int64_t later = head + 2 * int64_t(gridDim.x);
    if (copies && later < heads) {
      barrier_wait(empty + 8 * buffer, parity);
      copy(later, buffer);
    }
    __syncwarp();
  }
#endif
}

/// Empty; its launch bound tells whether the code in use was built for warpgroups (sm_90a).
#ifdef OCCAM_WARPGROUP
constexpr int kMark = 128;
#else
constexpr int kMark = 64;
#endif
__global__ void __launch_bounds__(kMark) attention_warpgroup_mark() {}

}  // namespace

bool attention_fits_warpgroups(const Attention<bf16>& a) {
  if (a.d != kSwizzleColumns || !aligned16(a.qkv, a.y, a.gy, a.gqkv)) return false;
  if (device_limits().capability != 90) return false;
  static const bool built = [] {
    cudaFuncAttributes attributes;
    OCCAM_CUDA_CHECK(cudaFuncGetAttributes(&attributes, attention_warpgroup_mark));
    return attributes.maxThreadsPerBlock == 128;
  }();
  return built;
}

void attention_fwd_short(const Attention<bf16>& a, void* stream) {
  for_tokens_of(a.t, [&]<int kTokens>() {
    constexpr int kAll = kGroups<kTokens>;
    auto kernel = attention_short_fwd<kTokens>;
    int64_t heads = a.b * a.h, at_once = int64_t(device_limits().sm_count) * kBlocks<kTokens>;
    // Few heads: a block for each 64 queries, so that more multiprocessors share the work. None without
    // queries: it would end while values are still on their way into its memory.
    bool split = heads * kAll <= device_limits().sm_count;
    dim3 grid = split ? dim3(unsigned(heads), unsigned(div_up<int64_t>(a.t, 64)))
                      : dim3(unsigned(std::min(heads, at_once)));
    const int64_t bytes = bytes_of<kTokens>(heads > grid.x ? 2 : 1);
    allow_shared(kernel, "attention_short_fwd", bytes);
    launch_chained(kernel, "attention_short_fwd", {grid, unsigned(split ? kGroup : kAll * kGroup), bytes},
                   {{}, {{a.y, a.b * a.t * a.h * a.d * 2}, {a.lse, a.b * a.h * a.t * 4}}}, stream, a, heads,
                   tensor_map(a.qkv, a.b, a.t, 3 * a.h * a.d, kTokens),
                   tensor_map(a.qkv, a.b, a.t, 3 * a.h * a.d, 64), tensor_map(a.y, a.b, a.t, a.h * a.d, 16));
  });
}

}  // namespace occam::kernels
