// Products of bf16 with fused epilogues for Hopper. A block is persistent and has three warpgroups: one warp
// of the first copies boxes of a and b to a ring of stages, the other two take turns at tiles: while one
// multiplies, the other finishes its tile (bias, GELU, rounding, stores).
#include <algorithm>
#include <cmath>
#include <iterator>

#include "ops/linear/fused_product.cuh"

namespace occam::kernels {

using namespace product;

namespace {

template <class P>
__device__ __forceinline__ void consume(const Shared<P>& shared, const Maps& maps, const Sizes& s) {
  const int group = int(threadIdx.x) / kWarpgroup - 1, thread = int(threadIdx.x) % kWarpgroup;
  const int warp = thread / 32, lane = thread % 32, slot = group * 4 + warp;
  const uint32_t vectors = shared.vectors + group * 4 * P::kN * 4;
  const int stride = int(gridDim.x);
  uint32_t z_phase = 0, parity = 0, place = 0;
  Ring<P> ring;
  ring.advance(group * s.k_steps);
  if (group == 1) named_arrive(turn_of(0), 2 * kWarpgroup);
  for (int t = int(blockIdx.x) + group * stride; t < s.tiles; t += 2 * stride) {
    const Tile tile = tile_number<P>(s, t);
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
    named_sync(turn_of(group), 2 * kWarpgroup);
    float x[P::kHalves][P::kN / 2];
    multiply<P>(x, shared, ring, s.k_steps, group);
    ring.advance(s.k_steps);  // those of the other warpgroup
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
  if (threadIdx.x == 0) {
    prefetch_map(&maps.a);
    prefetch_map(&maps.b);
    prefetch_map(&maps.d);
    for (int i = 0; i < P::kStages; ++i) {
      barrier_init(shared.full(i), 1);
      barrier_init(shared.empty(i), 4);  // warps that read a stage
    }
    for (int i = 0; i < kWarps; ++i) barrier_init(shared.z(i), 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    fewer_registers<24>();
    if (threadIdx.x == 0) produce<P>(shared, maps, s);
  } else {
    more_registers<240>();
    consume<P>(shared, maps, s);
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
  int rows, columns;
  const char* name;
};
constexpr TileShape kTiles[] = {{64, 64, "64x64"}, {128, 128, "128x128"}, {64, 192, "64x192"}};
constexpr int kSmall = 0, kLarge = 1, kWide = 2;

template <class P>
void launch(const FusedProduct& p, cudaStream_t stream) {
  Maps maps{};
  maps.a = tensor_map(p.a, p.m, p.k, P::kRows);
  maps.b = P::kGradient ? tensor_map(p.b, p.k, p.n, kStepK) : tensor_map(p.b, p.n, p.k, P::kN);
  maps.d = tensor_map(p.d, p.m, p.n, kBoxRows);
  if (p.z != nullptr) maps.z = tensor_map(p.z, p.m, p.n, kBoxRows);
  const bool sums = P::kGradient && p.bias_gradient != nullptr;
  const int64_t tiles_n = div_up<int64_t>(p.n, P::kN);
  const int64_t tiles = div_up<int64_t>(p.m, P::kRows) * tiles_n;
  const Sizes sizes{p.n,        int(p.m), int(div_up<int64_t>(p.k, kStepK)), int(tiles_n),
                    int(tiles), p.bias,   sums ? p.scratch : nullptr};

  allow_shared(fused_product_kernel<P>, "fused_product", P::kShared);
  const int64_t blocks = std::min<int64_t>(tiles, device_limits().sm_count);
  fused_product_kernel<P><<<unsigned(blocks), kThreads, P::kShared, stream>>>(maps, sizes);
  check_launch("fused_product", stream);
  if (!sums) return;
  add_partial_sums_kernel<<<unsigned(div_up<int64_t>(p.n, 32)), dim3(32, 32), 0, stream>>>(
      p.scratch, p.bias_gradient, div_up<int64_t>(p.m, P::kRows), p.n);
  check_launch("add_partial_sums", stream);
}

template <ProductEpilogue kE>
void launch(const FusedProduct& p, int tile, cudaStream_t stream) {
  if (tile == kSmall) return launch<Plan<64, 64, kE>>(p, stream);
  if (tile == kLarge) return launch<Plan<128, 128, kE>>(p, stream);
  return launch<Plan<64, 192, kE>>(p, stream);
}

}  // namespace

int fused_product_tiles() { return int(std::size(kTiles)); }
const char* fused_product_tile_name(int tile) { return kTiles[tile].name; }

/// On an H100, of eight shapes at 12,608 and 50,432 rows, tiles of 128 by 128 were the fastest or within 15 %
/// of it for every epilogue, and wide ones 3 to 16 % faster where the gradient's product is short. Where
/// large tiles would leave multiprocessors idle, small ones are faster.
int fused_product_tile(const FusedProduct& p) {
  if (p.tile >= 0) return p.tile;
  const int64_t tiles = div_up<int64_t>(p.m, 128) * div_up<int64_t>(p.n, 128);
  if (tiles < device_limits().sm_count) return kSmall;
  const bool gradient = p.epilogue == ProductEpilogue::gelu_gradient;
  return gradient && p.k <= 384 && p.n % kTiles[kWide].columns == 0 ? kWide : kLarge;
}

bool fused_product_supported(const FusedProduct& p) {
  constexpr int64_t kMost = int64_t(1) << 30;
  if (p.m < 1 || p.n < 1 || p.k < 1 || p.m > kMost || p.n > kMost || p.k > kMost) return false;
  if (p.n % 8 != 0 || p.k % 8 != 0 || div_up<int64_t>(p.m, 64) * div_up<int64_t>(p.n, 64) > kMost)
    return false;
  if (!aligned16(p.a, p.b, p.d, p.z)) return false;
  return device_limits().capability == 90 && tensor_maps_supported();
}

int64_t fused_product_scratch(const FusedProduct& p) {
  if (p.epilogue != ProductEpilogue::gelu_gradient) return 0;
  return div_up<int64_t>(p.m, kTiles[fused_product_tile(p)].rows) * p.n;
}

void fused_product(const FusedProduct& p, void* stream) {
  const int tile = fused_product_tile(p);
  switch (p.epilogue) {
    case ProductEpilogue::gelu:
      return launch<ProductEpilogue::gelu>(p, tile, as_stream(stream));
    case ProductEpilogue::gelu_keep:
      return launch<ProductEpilogue::gelu_keep>(p, tile, as_stream(stream));
    case ProductEpilogue::gelu_gradient:
      return launch<ProductEpilogue::gelu_gradient>(p, tile, as_stream(stream));
  }
}

}  // namespace occam::kernels
