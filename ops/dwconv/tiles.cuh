#pragma once
// Square kernels of side 3, 5 and 7: tiles of the grid in shared memory, the kernel in registers.
#include "ops/dwconv/grid.cuh"

namespace occam::kernels {

namespace {

/// Tiles that cover the grid: rows x columns of outputs, counts of them, and what a block keeps of x for one.
struct Tiles {
  int rows = 0, columns = 0, down = 0, across = 0;
  int seen_rows = 0, seen_columns = 0;

  __device__ int64_t count(const DwconvShape& s) const { return s.b * down * across; }
};

/// Tile n: its image and first output.
struct Tile {
  int64_t image;
  int r, q;
  __device__ Tile(const Tiles& tiles, int64_t n) {
    const int64_t line = n / tiles.across;
    image = line / tiles.down;
    q = int(n - line * tiles.across) * tiles.columns, r = int(line - image * tiles.down) * tiles.rows;
  }
};

/// Starts copying rows x columns tokens from (r, q) on, zero outside the grid, of this lane's two channels
/// into `to` [rows, columns, kLanes]; warps share the rows.
template <class T>
__device__ void fetch(const T* image, Pack<T, 2>* to, int gh, int gw, int c, int r, int q, int rows,
                      int columns) {
  for (int i = threadIdx.y; i < rows; i += blockDim.y) {
    const bool in_row = r + i >= 0 && r + i < gh;
    const T* line = image + int64_t(r + i) * gw * c;
    for (int j = 0; j < columns; ++j) {
      const bool in = in_row && q + j >= 0 && q + j < gw;
      const unsigned at = unsigned(__cvta_generic_to_shared(to + (i * columns + j) * kLanes + threadIdx.x));
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                   :
                   : "r"(at), "l"(in ? line + int64_t(q + j) * c : image), "n"(2 * sizeof(T)),
                     "r"(in ? int(2 * sizeof(T)) : 0));
    }
  }
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kLeft) : "memory");
}

/// A block keeps the weights of 64 channels in registers and goes from tile to tile; the next one is on its
/// way to shared memory meanwhile.
template <class T, int K>
__global__ void __launch_bounds__(kLanes* kTileWarps) dwconv_tiles(Convolve<T> a, Tiles tiles) {
  extern __shared__ __align__(16) unsigned char memory[];
  const DwconvShape& s = a.s;
  const int channel = (int(blockIdx.y) * kLanes + int(threadIdx.x)) * 2, c = int(s.c);
  const int gh = int(s.gh), gw = int(s.gw);
  const bool inside = channel < c;
  Pack<T, 2>* const buffer = reinterpret_cast<Pack<T, 2>*>(memory);
  const int size = tiles.seen_rows * tiles.seen_columns * kLanes;
  float w[K][K][2] = {}, bias[2] = {};
  if (inside) {
#pragma unroll
    for (int tap = 0; tap < K * K; ++tap)
      load_acc(a.w + int64_t(a.flip ? K * K - 1 - tap : tap) * c + channel, w[tap / K][tap % K]);
    if (a.bias != nullptr) load_acc(a.bias + channel, bias);
  }
  auto start = [&](int64_t n, int which) {
    const Tile t(tiles, n);
    if (inside && n < tiles.count(s))
      fetch(a.from + (t.image * s.tokens() + s.prefix) * c + channel, buffer + which * size, gh, gw, c,
            t.r - K / 2, t.q - K / 2, tiles.seen_rows, tiles.seen_columns);
    commit_copies();
  };
  start(blockIdx.x, 0);
  int which = 0;
  for (int64_t n = blockIdx.x; n < tiles.count(s); n += gridDim.x, which ^= 1) {
    start(n + gridDim.x, which ^ 1);
    wait_copies<1>();
    __syncthreads();
    const Tile t(tiles, n);
    float base[2] = {bias[0], bias[1]};
    if (inside && a.image_base != nullptr) load_acc(a.image_base + t.image * c + channel, base);
    T* const to = a.to + (t.image * s.tokens() + s.prefix) * c + channel;
    const int columns = min(tiles.columns, gw - t.q);
    for (int i = threadIdx.y; inside && i < tiles.rows && t.r + i < gh; i += kTileWarps) {
      const Pack<T, 2>* seen = buffer + which * size + i * tiles.seen_columns * kLanes + threadIdx.x;
      T* out = to + (int64_t(t.r + i) * gw + t.q) * c;
      float sum[K][2], over_patches[2] = {};  // sum[j]: of the output that has got taps 0 to j
#pragma unroll
      for (int j = 0; j < K; ++j) sum[j][0] = base[0], sum[j][1] = base[1];
#pragma unroll 1
      for (int p = 0; p < columns + K - 1; ++p, seen += kLanes) {
        float x[K][2];
#pragma unroll
        for (int k = 0; k < K; ++k) widen(seen[k * tiles.seen_columns * kLanes], x[k]);
#pragma unroll
        for (int j = K - 1; j >= 0; --j)
#pragma unroll
          for (int v = 0; v < 2; ++v) {
            float total = j > 0 ? sum[j > 0 ? j - 1 : 0][v] : base[v];
#pragma unroll
            for (int k = 0; k < K; ++k) total += w[k][j][v] * x[k][v];
            sum[j][v] = total;
          }
        if (p < K - 1) continue;
        store_acc(out + int64_t(p - (K - 1)) * c, sum[K - 1]);
      }
      if (a.sums == nullptr) continue;
      seen = buffer + which * size + ((i + K / 2) * tiles.seen_columns + K / 2) * kLanes + threadIdx.x;
      for (int p = 0; p < columns; ++p) {
        float x[2];
        widen(seen[p * kLanes], x);
        over_patches[0] += x[0], over_patches[1] += x[1];
      }
      const int64_t unit = (t.image * gh + t.r + i) * tiles.across + t.q / tiles.columns;
      store_acc(a.sums + unit * c + channel, over_patches);
    }
    __syncthreads();
  }
}

/// partial [blocks, taps + 1, c]: the kernel's taps, then the sum of gy over patches. Tiles as in
/// dwconv_tiles, of x and of gy.
template <class T, int K>
__global__ void __launch_bounds__(kLanes* kTileWarps)
    dwconv_bwd_tiles(DwconvBackward<T, float> a, Tiles tiles, float* partial) {
  extern __shared__ __align__(16) unsigned char memory[];
  const DwconvShape& s = a.s;
  const int channel = (int(blockIdx.y) * kLanes + int(threadIdx.x)) * 2, c = int(s.c);
  const int gh = int(s.gh), gw = int(s.gw);
  const bool inside = channel < c;
  Pack<T, 2>* const buffer = reinterpret_cast<Pack<T, 2>*>(memory);
  const int size_x = tiles.seen_rows * tiles.seen_columns * kLanes;
  const int size = size_x + tiles.rows * tiles.columns * kLanes;
  auto start = [&](int64_t n, int which) {
    const Tile t(tiles, n);
    if (inside && n < tiles.count(s)) {
      const int64_t first = (t.image * s.tokens() + s.prefix) * c + channel;
      fetch(a.x + first, buffer + which * size, gh, gw, c, t.r - K / 2, t.q - K / 2, tiles.seen_rows,
            tiles.seen_columns);
      fetch(a.gy + first, buffer + which * size + size_x, gh, gw, c, t.r, t.q, tiles.rows, tiles.columns);
    }
    commit_copies();
  };
  float sum[K * K + 1][2] = {};
  start(blockIdx.x, 0);
  int which = 0;
  for (int64_t n = blockIdx.x; n < tiles.count(s); n += gridDim.x, which ^= 1) {
    start(n + gridDim.x, which ^ 1);
    wait_copies<1>();
    __syncthreads();
    for (int i = threadIdx.y; inside && i < tiles.rows; i += kTileWarps) {
      const Pack<T, 2>* seen = buffer + which * size + i * tiles.seen_columns * kLanes + threadIdx.x;
      const Pack<T, 2>* gy = buffer + which * size + size_x + i * tiles.columns * kLanes + threadIdx.x;
      float g[K][2] = {};  // gy at columns p - j, where x is at p - K/2
#pragma unroll 1
      for (int p = 0; p < tiles.columns + K - 1; ++p, seen += kLanes) {
        float x[K][2];
#pragma unroll
        for (int k = 0; k < K; ++k) widen(seen[k * tiles.seen_columns * kLanes], x[k]);
#pragma unroll
        for (int j = K - 1; j > 0; --j) g[j][0] = g[j - 1][0], g[j][1] = g[j - 1][1];
        g[0][0] = g[0][1] = 0;
        if (p < tiles.columns) widen(gy[p * kLanes], g[0]);
        sum[K * K][0] += g[0][0], sum[K * K][1] += g[0][1];
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
          for (int j = 0; j < K; ++j)
#pragma unroll
            for (int v = 0; v < 2; ++v) sum[k * K + j][v] += g[j][v] * x[k][v];
      }
    }
    __syncthreads();
  }
  wait_copies<0>();
  __syncthreads();  // the sums use the same memory
  put_block_sums(sum, K * K + 1, inside, partial + int64_t(blockIdx.x) * (K * K + 1) * c + channel, c,
                 reinterpret_cast<float*>(memory));
}

}  // namespace

}  // namespace occam::kernels
