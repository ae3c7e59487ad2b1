// Products of bf16 with fused epilogues for Hopper. A block is persistent and has three warpgroups: one warp
// of the first copies boxes of a and b to a ring of stages, the other two take turns at tiles: while one
// multiplies, the other finishes its tile (bias, GELU, rounding, stores). Blocks of a pair (a cluster of two)
// work on two tiles below each other and fetch half of b each, for both.
#include <algorithm>
#include <cmath>
#include <iterator>

#include "ops/linear/fused_product.cuh"

namespace occam::kernels {

using namespace product;

namespace {

template <class P>
__device__ __forceinline__ void consume(const Shared<P>& shared, const Maps& maps, const Sizes& s, int rank) {
  const int group = int(threadIdx.x) / kWarpgroup - 1, thread = int(threadIdx.x) % kWarpgroup;
  const int warp = thread / 32, lane = thread % 32, slot = group * 4 + warp;
  const uint32_t vectors = shared.vectors + group * 4 * P::kN * 4;
  const int stride = int(gridDim.x) / P::kPair, first_row = P::kTogether ? group * P::kRows : 0;
  constexpr int kTurns = P::kTogether ? 1 : 2;
  uint32_t z_phase = 0, parity = 0, place = 0;
  Ring<P> ring;
  if (!P::kTogether) {
    ring.advance(group * s.k_steps);
    if (group == 1) named_arrive(turn_of(0), 2 * kWarpgroup);
  }
  for (int t = int(blockIdx.x) / P::kPair + (P::kTogether ? 0 : group * stride); t < s.tiles;
       t += kTurns * stride) {
    Tile tile = tile_at<P>(s, t, rank);
    tile.row += first_row;
    const Finish<P> finish{
        maps, s, shared.results + slot * P::kBoxes * kBox, lane, tile.row + warp * kBoxRows, tile.column};
    // Two places for the bias: a warp may be a tile ahead of its neighbours, never two.
    const uint32_t bias = vectors + parity * P::kN * 4;
    if constexpr (P::kGradient) {
      finish.fetch_z(shared.z(slot));
    } else {
      for (int i = thread; i < P::kN; i += kWarpgroup)
        store_shared(bias + 4 * i,
                     s.bias != nullptr && tile.column + i < s.n ? float(s.bias[tile.column + i]) : 0.0f);
    }
    parity ^= 1;
    if constexpr (P::kTogether)
      named_sync(own_of(group), kWarpgroup);
    else
      named_sync(turn_of(group), 2 * kWarpgroup);
    float x[P::kHalves][P::kN / 2];
    multiply<P>(x, shared, ring, s.k_steps, group);
    if (!P::kTogether) ring.advance(s.k_steps);  // those of the other warpgroup
    if constexpr (P::kGradient) {
      if (finish.row < s.m) {
        barrier_wait(shared.z(slot), z_phase);
        z_phase ^= 1;
      }
      finish.gradient(x, vectors + warp * P::kN * 4);
      if (s.column_sums != nullptr) {
        named_sync(own_of(group), kWarpgroup);
        for (int i = thread; i < P::kN; i += kWarpgroup) {
          if (tile.column + i >= s.n || tile.row >= s.m) break;
          float sum = 0;
          for (int w = 0; w < 4; ++w) sum += load_shared(vectors + (w * P::kN + i) * 4);
          s.column_sums[int64_t(tile.row / P::kRows) * s.n + tile.column + i] = sum;
        }
      }
    } else {
      finish.forward(x, bias, place);
    }
  }
  if (lane == 0) store_wait();
}

template <class P>
__global__ void __launch_bounds__(kThreads, 1)
    fused_product_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Sizes s) {
  extern __shared__ unsigned char memory[];
  const Shared<P> shared(memory);
  const int rank = int(blockIdx.x) % P::kPair;
  if (threadIdx.x == 0) {
    prefetch_map(&maps.a);
    prefetch_map(&maps.b);
    prefetch_map(&maps.d);
    for (int i = 0; i < P::kStages; ++i) {
      barrier_init(shared.full(i), 1);
      barrier_init(shared.empty(i), (P::kTogether ? 8 : 4) * P::kPair);  // warps that read a stage
    }
    for (int i = 0; i < kWarps; ++i) barrier_init(shared.z(i), 1);
    barrier_init_fence();
  }
  __syncthreads();
  if constexpr (P::kPair > 1) cluster_sync();
  if (threadIdx.x < kWarpgroup) {
    fewer_registers<24>();
    if (threadIdx.x == 0) produce<P>(shared, maps, s, rank);
  } else {
    more_registers<240>();
    consume<P>(shared, maps, s, rank);
  }
  // A block's barriers live until its partner has arrived at them for the last time.
  if constexpr (P::kPair > 1) {
    __syncwarp();
    cluster_sync();
  }
}

/// out[c] = sum over rows of x[r, c]: a warp adds every 32nd row of 32 columns.
__global__ void add_partial_sums_kernel(const float* x, float* out, int64_t rows, int64_t columns) {
  constexpr int kLanes = 32, kParts = 32;
  __shared__ float parts[kParts][kLanes];
  const int64_t column = int64_t(blockIdx.x) * kLanes + threadIdx.x;
  float sum = 0;
  if (column < columns)
#pragma unroll 4
    for (int64_t r = threadIdx.y; r < rows; r += kParts) sum += x[r * columns + column];
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int p = 1; p < kParts; ++p) sum += parts[p][threadIdx.x];
  out[column] = sum;
}

struct TileShape {
  int rows;  // of a tile's part of the column sums
  const char* name;
};
constexpr TileShape kTiles[] = {
    {64, "64x64"},    {128, "128x128"},        {128, "128x128, pairs"},          {64, "64x192"},
    {128, "128x192"}, {128, "128x192, pairs"}, {64, "128x256, together, pairs"}, {64, "128x256, together"}};
constexpr int kSmall = 0, kLarge = 1;
constexpr int kTileCount = int(std::size(kTiles));

}  // namespace

int fused_product_tiles() { return kTileCount; }
const char* fused_product_tile_name(int tile) { return kTiles[tile].name; }

namespace {

template <class P>
void launch(const FusedProduct& p, cudaStream_t stream) {
  const int sms = device_limits().sm_count;
  Maps maps{};
  maps.a = tensor_map(p.a, p.m, p.k, P::kTileRows);
  maps.b = P::kTransposed ? tensor_map(p.b, p.k, p.n, kStepK / P::kPair)
                          : tensor_map(p.b, p.n, p.k, P::kN / P::kPair);
  maps.d = tensor_map(p.d, p.m, p.n, kBoxRows);
  if (p.z != nullptr) maps.z = tensor_map(p.z, p.m, p.n, kBoxRows);
  const bool activated = P::kGradient && p.activated != nullptr;
  if (activated) maps.activated = tensor_map(p.activated, p.m, p.n, kBoxRows);
  const bool sums = P::kGradient && p.bias_gradient != nullptr;
  const int64_t tiles_n = div_up<int64_t>(p.n, P::kN);
  const int64_t tiles = div_up<int64_t>(p.m, P::kTileRows * P::kPair) * tiles_n;
  const Sizes sizes{p.n,        int(p.m), int(div_up<int64_t>(p.k, kStepK)), int(tiles_n),
                    int(tiles), p.bias,   sums ? p.scratch : nullptr,        activated};

  allow_shared(fused_product_kernel<P>, "fused_product", P::kShared);
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(P::kPair), 1, 1};
  config.gridDim = dim3(unsigned(std::min<int64_t>(tiles, sms / P::kPair) * P::kPair));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = P::kShared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  OCCAM_CUDA_CHECK(cudaLaunchKernelEx(&config, fused_product_kernel<P>, maps, sizes));
  check_launch("fused_product", stream);
  if (!sums) return;
  add_partial_sums_kernel<<<unsigned(div_up<int64_t>(p.n, 32)), dim3(32, 32), 0, stream>>>(
      p.scratch, p.bias_gradient, div_up<int64_t>(p.m, P::kRows), p.n);
  check_launch("add_partial_sums", stream);
}

template <ProductEpilogue kE, bool kT>
void launch(const FusedProduct& p, int tile, cudaStream_t stream) {
  switch (tile) {
    case 0:
      return launch<Plan<64, 64, 1, false, kE, kT>>(p, stream);
    case 1:
      return launch<Plan<128, 128, 1, false, kE, kT>>(p, stream);
    case 2:
      return launch<Plan<128, 128, 2, false, kE, kT>>(p, stream);
    case 3:
      return launch<Plan<64, 192, 1, false, kE, kT>>(p, stream);
    case 4:  // with the gradient's boxes beside it, this tile has no room: see fused_product_tile
      if constexpr (kE != ProductEpilogue::gelu_gradient)
        return launch<Plan<128, 192, 1, false, kE, kT>>(p, stream);
      break;
    case 5:
      if constexpr (kE != ProductEpilogue::gelu_gradient)
        return launch<Plan<128, 192, 2, false, kE, kT>>(p, stream);
      break;
    case 6:
      return launch<Plan<64, 256, 2, true, kE, kT>>(p, stream);
    default:
      return launch<Plan<64, 256, 1, true, kE, kT>>(p, stream);
  }
}

}  // namespace

/// Tiles of 128 by 128 were the fastest, or within 15 % of it, for every epilogue with a GELU at 12,608 and
/// 50,432 rows on an H100; where they would leave multiprocessors idle, small ones are.
int fused_product_tile(const FusedProduct& p) {
  const bool gradient = p.epilogue == ProductEpilogue::gelu_gradient;
  if (p.tile >= 0) return gradient && (p.tile == 4 || p.tile == 5) ? kLarge : p.tile;
  const int64_t tiles = div_up<int64_t>(p.m, 128) * div_up<int64_t>(p.n, 128);
  return tiles < device_limits().sm_count ? kSmall : kLarge;
}

bool fused_product_supported(const FusedProduct& p) {
  constexpr int64_t kMost = int64_t(1) << 30;
  const bool gradient = p.epilogue == ProductEpilogue::gelu_gradient;
  if (p.m < 1 || p.n < 1 || p.k < 1 || p.m > kMost || p.n > kMost || p.k > kMost) return false;
  if (p.n % 8 != 0 || p.k % 8 != 0 || div_up<int64_t>(p.m, 64) * div_up<int64_t>(p.n, 64) > kMost)
    return false;
  if (!aligned16(p.a, p.b, p.d, p.z, p.activated)) return false;
  if (p.b_transposed != gradient && p.epilogue != ProductEpilogue::bias) return false;
  return device_limits().capability == 90 && tensor_maps_supported();
}

int64_t fused_product_scratch(const FusedProduct& p) {
  if (p.epilogue != ProductEpilogue::gelu_gradient) return 0;
  return div_up<int64_t>(p.m, kTiles[fused_product_tile(p)].rows) * p.n;
}

void fused_product(const FusedProduct& p, void* stream) {
  const int tile = fused_product_tile(p);
  switch (p.epilogue) {
    case ProductEpilogue::bias:
      if (p.b_transposed) return launch<ProductEpilogue::bias, true>(p, tile, as_stream(stream));
      return launch<ProductEpilogue::bias, false>(p, tile, as_stream(stream));
    case ProductEpilogue::gelu:
      return launch<ProductEpilogue::gelu, false>(p, tile, as_stream(stream));
    case ProductEpilogue::gelu_keep:
      return launch<ProductEpilogue::gelu_keep, false>(p, tile, as_stream(stream));
    case ProductEpilogue::gelu_gradient:
      return launch<ProductEpilogue::gelu_gradient, true>(p, tile, as_stream(stream));
  }
}

}  // namespace occam::kernels
