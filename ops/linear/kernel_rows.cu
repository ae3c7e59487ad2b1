// Products of few rows for Hopper: what a model computes for one image. See README.md, "Few rows".
#include <algorithm>
#include <iterator>

#include "core/cuda/chain.h"
#include "ops/linear/rows_product.cuh"

namespace occam::kernels {

using namespace rows;

namespace {

/// Grid (split, tiles along n, tiles along m); the `split` blocks of a tile are a cluster and share its k.
template <class P>
__global__ void __launch_bounds__(P::kThreads)
    rows_product_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Sizes s) {
#ifdef OCCAM_WARPGROUP
  extern __shared__ unsigned char memory[];
  const Shared<P> shared(s, memory);
  const int thread = int(threadIdx.x), rank = int(blockIdx.x);
  const int output = int(blockIdx.y) * P::kOutputs, row = int(blockIdx.z) * P::kRows;
  const int first = rank * s.chunks_of_rank, count = min(s.chunks_of_rank, s.chunks - first);
  if (thread == P::kWorkers) {
    prefetch_map(&maps.x);
    prefetch_map(&maps.w);
#pragma unroll 1
    for (int i = 0; i < s.stages; ++i) {
      barrier_init(shared.full(i), 1);
      barrier_init(shared.empty(i), P::kGroups * kWarpgroup / kWarp);
    }
    barrier_init(shared.all_x(), 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (s.split > 1) cluster_arrive();
  if (thread >= P::kWorkers) {
    if (thread == P::kWorkers) produce<P>(shared, maps, s, first, count, output, row);
    __syncwarp();
    if (s.split > 1) cluster_wait(), cluster_arrive(), cluster_wait();
    return;
  }
  if constexpr (P::kNorm)
#pragma unroll 1
    for (int i = thread; i < s.chunks * 8; i += P::kWorkers) {
      const bool inside = 8 * i < s.k;
      const uint32_t at = shared.scale + 16 * uint32_t(i);
      store_piece(at, inside ? reinterpret_cast<const uint4*>(s.norm_weight)[i] : uint4{});
      store_piece(at + 128 * s.chunks, inside ? reinterpret_cast<const uint4*>(s.norm_bias)[i] : uint4{});
    }
  Finish<P> finish;
  finish.share_log = s.share_log, finish.row = row, finish.output = output + (rank << s.share_log) * 8;
  finish.end = min(s.n, int64_t(output + P::kOutputs));
  grid_wait();
  grid_release_next();
  finish.fetch(s);
  if constexpr (P::kNorm) {
    named_sync(1, P::kWorkers);
    barrier_wait(shared.all_x(), 0);
    normalise<P>(shared, s);
    fence_async();
    named_sync(1, P::kWorkers);
  }
  if (P::kGroups == 2 || thread < kWarpgroup)
    multiply<P>(shared, s, count, rank);
  else if (s.split > 1)
    cluster_wait();
  if (s.split > 1)
    cluster_arrive(), cluster_wait();
  else
    named_sync(1, P::kWorkers);
  finish.store(s, shared.sums);
#endif
}

/// Empty; its launch bound tells whether the code in use was built for warpgroups (sm_90a).
#ifdef OCCAM_WARPGROUP
constexpr int kMark = 128;
#else
constexpr int kMark = 64;
#endif
__global__ void __launch_bounds__(kMark) rows_product_mark() {}

struct TileShape {
  int rows, groups;
  const char* name;
};
constexpr TileShape kTiles[] = {{16, 1, "16x64"},  {32, 1, "32x64"},  {64, 1, "64x64"},
                                {16, 2, "16x128"}, {32, 2, "32x128"}, {64, 2, "64x128"}};
constexpr int64_t kMostRows = 512, kMostRow = 512, kMostWeights = int64_t(1) << 20;

struct Choice {
  int tile, split;
};

/// The smallest tile that leaves a block at most to each multiprocessor; long sums in two parts. Of the
/// shapes at 197 rows on an H100 the fastest or within 8 % of it (README.md).
Choice choice_for(const RowsProduct& p) {
  constexpr int64_t kLongSum = 1024;
  constexpr int kOrder[] = {0, 1, 4, 5};
  const bool cut = p.norm_weight == nullptr && p.k >= kLongSum;
  int tile = kOrder[3];
  for (int i = 3; i >= (cut ? 1 : 0); --i)
    if (div_up<int64_t>(p.m, kTiles[kOrder[i]].rows) * div_up<int64_t>(p.n, 64 * kTiles[kOrder[i]].groups) <=
        device_limits().sm_count)
      tile = kOrder[i];
  return {p.tile >= 0 ? p.tile : tile, p.split > 0 ? p.split : cut ? 2 : 1};
}

template <class P>
void launch(const RowsProduct& p, int split, void* stream) {
  const int chunks = int(div_up<int64_t>(p.k, kStepK)), longest = div_up(chunks, split);
  split = div_up(chunks, longest);  // so that every block has a part
  // Half of the memory, so that the next kernel can begin beside this one, unless that leaves a short ring.
  constexpr int kHalf = 113 * 1024, kAll = 226 * 1024, kLong = 6;
  int stages = std::min(longest, kMostStages);
  const int budget = P::bytes(std::min(stages, kLong), chunks, split) <= kHalf ? kHalf : kAll;
  while (stages > 2 && P::bytes(stages, chunks, split) > budget) --stages;
  const int bytes = P::bytes(stages, chunks, split);
  Maps maps{tensor_map(p.x, p.m, p.k, P::kRows), tensor_map(p.w, p.n, p.k, P::kOutputs)};
  const Sizes sizes{
      p.m,   p.n,    p.k,    chunks,        stages,      split,      longest, P::share_log(split),
      p.eps, p.gelu, p.bias, p.norm_weight, p.norm_bias, p.residual, p.y};
  const int64_t vector = P::kNorm ? p.k * 2 : 0;
  allow_shared(rows_product_kernel<P>, "rows_product", bytes);
  launch_chained(
      rows_product_kernel<P>, "rows_product",
      {dim3(unsigned(split), unsigned(div_up<int64_t>(p.n, P::kOutputs)),
            unsigned(div_up<int64_t>(p.m, P::kRows))),
       P::kThreads, bytes, unsigned(split)},
      {{{p.w, p.n * p.k * 2}, {p.norm_weight, vector}, {p.norm_bias, vector}}, {{p.y, p.m * p.n * 2}}},
      stream, maps, sizes);
}

template <bool kNorm>
void launch(const RowsProduct& p, const Choice& c, void* stream) {
  switch (c.tile) {
    case 0:
      return launch<Plan<16, 1, kNorm>>(p, c.split, stream);
    case 1:
      return launch<Plan<32, 1, kNorm>>(p, c.split, stream);
    case 2:
      return launch<Plan<64, 1, kNorm>>(p, c.split, stream);
    case 3:
      return launch<Plan<16, 2, kNorm>>(p, c.split, stream);
    case 4:
      return launch<Plan<32, 2, kNorm>>(p, c.split, stream);
    default:
      return launch<Plan<64, 2, kNorm>>(p, c.split, stream);
  }
}

bool built_for_warpgroups() {
  static const bool built = [] {
    cudaFuncAttributes attributes;
    OCCAM_CUDA_CHECK(cudaFuncGetAttributes(&attributes, rows_product_mark));
    return attributes.maxThreadsPerBlock == 128;
  }();
  return built;
}

}  // namespace

int rows_product_tiles() { return int(std::size(kTiles)); }
const char* rows_product_tile_name(int tile) { return kTiles[tile].name; }

bool rows_product_pays(int64_t rows, int64_t k) {
  return rows <= kMostRows && k <= kMostRow && device_limits().capability == 90 && tensor_maps_supported() &&
         built_for_warpgroups();
}

bool rows_product_supported(const RowsProduct& p) {
  if (p.m < 1 || p.n < 1 || p.k < 1 || p.n % 8 != 0 || p.k % 8 != 0) return false;
  if (p.m > kMostRows || p.n > kMostWeights || p.k > kMostWeights || p.n * p.k > kMostWeights) return false;
  if (p.norm_weight != nullptr && p.k > kMostChunks * kStepK) return false;
  return aligned16(p.x, p.w, p.bias, p.norm_weight, p.norm_bias, p.residual, p.y) &&
         rows_product_pays(p.m, 1);
}

void rows_product(const RowsProduct& p, void* stream) {
  if (p.norm_weight != nullptr) return launch<true>(p, choice_for(p), stream);
  return launch<false>(p, choice_for(p), stream);
}

}  // namespace occam::kernels
