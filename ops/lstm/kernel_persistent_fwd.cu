// Forward of bf16 heads whose x and states are kWidth wide, in one launch with the input products in it:
// README.md, "Forward on tensor cores". A block is a (direction, head) and kTile images. Its warps hold the
// weights as operands of mma.sync for the whole sequence; gates are the rows of the products, images their
// columns, and a thread has all four gates of its cells.
#include "core/cuda/launch.h"
#include "core/cuda/mma.cuh"
#include "ops/lstm/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kWidth = 64, kGates = 4 * kWidth, kTile = 8;
constexpr int kRow = 2 * (kWidth + 8);  // bytes of a row in shared memory; 16 keep 8 rows in different banks
constexpr int kSlot = 2048;             // bytes of a tile there, a power of two
constexpr int kAhead = 8;               // slots of x, a power of two
// Shared memory, offsets in bytes: x, then h and c of this step and the one before, then the biases.
constexpr uint32_t kX = 0, kH = kAhead * kSlot, kC = kH + 2 * kSlot, kBias = kC + 2 * kSlot,
                   kBytes = kBias + kGates * 8;

template <Cell kCell>
__device__ constexpr bool is_sigmoid(int gate) {
  return kCell == Cell::lstm ? gate != 2 : gate < 2;
}

/// One cell: z are its gates, those of sigmoids halved, since sigmoid(z) = (1 + tanh(z / 2)) / 2; c is what
/// it carries besides h, of a GRU h before it is rounded.
template <Cell kCell>
__device__ __forceinline__ float cell(const float (&z)[4], float& c) {
  if constexpr (kCell == Cell::lstm) {
    float i = tanh_fast(z[0]), f = tanh_fast(z[1]), g = tanh_fast(z[2]), o = tanh_fast(z[3]);
    c = 0.5f * (fmaf(i, g, g) + fmaf(f, c, c));
    float t = tanh_fast(c);
    return 0.5f * fmaf(o, t, t);
  }
  float r = fmaf(0.5f, tanh_fast(z[0]), 0.5f), u = fmaf(0.5f, tanh_fast(z[1]), 0.5f);
  float n = tanh_fast(fmaf(r, z[3], z[2]));
  return c = fmaf(u, c - n, n);
}

__device__ __forceinline__ uint32_t halved(uint32_t pair) {
  uint32_t half;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(half) : "r"(pair), "r"(0x3f003f00u), "r"(0x80008000u));
  return half;
}

__device__ __forceinline__ uint4 load_shared(uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_global(const char* at, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

/// Row 8 half + g of product m, of a warp's kProducts products of 16 rows: which gate of which state. 4
/// warps: a product a gate, of 16 states; 8 warps: two gates of 8 states. Either way all gates of a cell meet
/// in one thread.
template <int kWarps>
struct Rows {
  static constexpr int kProducts = 16 / kWarps, kStates = 8 / kWarps;  // kStates: that a thread has
  static __device__ __forceinline__ int gate(int m, int half) { return kWarps == 4 ? m : 2 * m + half; }
  static __device__ __forceinline__ int state(int warp, int g, int half) {
    return kWarps == 4 ? 16 * warp + 2 * g + half : 8 * warp + g;
  }
  /// The element of d that is `gate` of the thread's state `half` and image `column`.
  static __device__ __forceinline__ float of(const float (&d)[kProducts][4], int gate, int half, int column) {
    return kWarps == 4 ? d[gate][2 * half + column] : d[gate / 2][gate % 2 * 2 + column];
  }
};

/// kColumns: images that a thread has: 2, or 1 of tiles of 4 images, which then take every other column.
/// kBlocks: on a multiprocessor. `early`: the input products of the next step are made between the recurrent
/// ones and the cell, into registers of their own; otherwise after the cell.
template <Cell kCell, bool kRagged, int kWarps, int kColumns, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) lstm_fwd_resident(LstmPersistentForward a) {
  using Rows = Rows<kWarps>;
  constexpr int kProducts = Rows::kProducts, kStates = Rows::kStates, kImages = kTile * kColumns / 2;
  constexpr bool early = kWarps == 8;
  __shared__ __align__(16) unsigned char shared[kBytes];
  const uint32_t base = shared_address(shared);
  const int thread = int(threadIdx.x), warp = thread / 32, g = thread % 32 / 4, q = thread % 4;
  const int lines = int(2 * a.s.h), line = int(blockIdx.x) % lines;
  const bool reverse = line >= a.s.h, keeps = a.cells != nullptr;
  const int64_t head = line % a.s.h, first = int64_t(blockIdx.x) / lines * kImages;
  int steps = int(a.s.t);  // of the tile's longest image
  if constexpr (kRagged) {
    steps = 0;
    for (int64_t i = first; i < first + kImages && i < a.s.b; ++i) steps = max(steps, int(a.s.length(i)));
  }

  for (uint32_t i = 16 * thread; i < kBias; i += 512 * kWarps)
    *reinterpret_cast<uint4*>(shared + i) = make_uint4(0, 0, 0, 0);
  __syncthreads();

  // Threads 0 to 63 bring x, 64 to 127 take y (and c) away, 16 bytes of one image a step. `there` is what the
  // step brings or takes: x of kAhead - 1 steps later, y of the step before.
  const bool brings = thread < 64;
  const int row = thread % 64 / 8, piece = thread % 8 * 8;
  const int64_t image = first + row * kColumns / 2;
  // What is behind a ragged image's end is computed from x as it happens to be there, and stays in its
  // columns. The other form has no length beside `steps`, which would cost its loop a tenth.
  bool moves = thread < 128 && image < a.s.b && (kColumns == 2 || row % 2 == 0);
  int length = steps;
  int64_t start = image * a.s.t + (reverse ? a.s.t - 1 : 0);
  if constexpr (kRagged) {
    length = moves ? int(a.s.length(image)) : 0;
    moves = length > 0;
    start = moves ? a.s.row(image, reverse, 0) : 0;
  }
  start = start * a.s.h + head;
  const int stride = int(a.s.h) * (reverse ? -1 : 1) * kWidth * 2 * (brings ? 1 : 2);
  const uint32_t here = base + row * kRow + piece * 2;
  const char* there = brings ? reinterpret_cast<const char*>(a.x + start * kWidth + piece)
                             : reinterpret_cast<const char*>(a.y + (2 * start + reverse) * kWidth + piece) -
                                   kAhead * int64_t(stride);
  auto bring = [&](uint32_t slot, int step) {
    if (moves && brings && step < length)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(here + slot), "l"(there) : "memory");
    copies_commit();
  };
  auto take = [&](uint32_t h, int step) {
    if (!moves || brings || (kRagged && step >= length)) return;
    store_global(there, load_shared(here + h));
    if (keeps) store_global(there + a.cells_after_y, load_shared(here + h + (kC - kH)));
  };
  for (int n = 0; n < kAhead - 1; ++n, there += stride) bring(n * kSlot, n);

  // Of a row a lane holds columns 16 q to 16 q + 15, as mma.sync's columns 2q, 2q+1, 2q+8 and 2q+9 of four
  // products: sums may be taken in any order, and so both operands are read in pieces of 16 bytes.
  uint32_t w_x[kProducts][4][4], w_h[kProducts][4][4];
  constexpr int kRows = given_gates(kCell) * kWidth;
  auto load_row = [&](uint32_t(&w)[4][4], const bf16* weights, bool given, int half, bool halve) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      uint4 v = make_uint4(0, 0, 0, 0);
      if (given) v = *reinterpret_cast<const uint4*>(weights + 16 * q + 8 * k);
      w[2 * k][half] = halve ? halved(v.x) : v.x, w[2 * k][half + 2] = halve ? halved(v.y) : v.y;
      w[2 * k + 1][half] = halve ? halved(v.z) : v.z, w[2 * k + 1][half + 2] = halve ? halved(v.w) : v.w;
    }
  };
  // Biases as the products start from them: {b, b, b of 8 rows on, the same}.
  const uint32_t bias_at = kBias + (warp * kProducts * 8 + g) * 16;
#pragma unroll
  for (int m = 0; m < kProducts; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int gate = Rows::gate(m, half);
      const int of_x = given_gate(kCell, gate, false), of_h = given_gate(kCell, gate, true);
      const int64_t at = int64_t(line) * kRows + Rows::state(warp, g, half);
      const int64_t at_x = at + of_x * kWidth, at_h = at + of_h * kWidth;
      load_row(w_x[m], a.w_ih + at_x * kWidth, of_x >= 0, half, is_sigmoid<kCell>(gate));
      load_row(w_h[m], a.w_hh + at_h * kWidth, of_h >= 0, half, is_sigmoid<kCell>(gate));
      if (q < 2)
        reinterpret_cast<float*>(shared + bias_at + m * 128)[2 * half + q] =
            ((of_x < 0 ? 0 : float(a.b_ih[at_x])) + (of_h < 0 ? 0 : float(a.b_hh[at_h]))) *
            (is_sigmoid<kCell>(gate) ? 0.5f : 1.0f);
    }
  __syncwarp();

  const uint32_t mine = base + g * kRow + 32 * q;
  // Products that are 0 throughout are left out.
  constexpr bool kHalfGates = kCell == Cell::gru && kWarps == 4;
  constexpr int kNotOfX = kHalfGates ? 3 : -1, kNotOfH = kHalfGates ? 2 : -1;
  auto add_products = [&](float(&d)[kProducts][4], const uint32_t(&w)[kProducts][4][4], int not_of,
                          uint32_t tile) {
    const uint4 low = load_shared(mine + tile), high = load_shared(mine + tile + 16);
    const uint32_t b[4][2] = {{low.x, low.y}, {low.z, low.w}, {high.x, high.y}, {high.z, high.w}};
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int m = 0; m < kProducts; ++m)
        if (m != not_of) mma_bf16(d[m], w[m][k], b[k][0], b[k][1]);
  };
  auto input_products = [&](float(&d)[kProducts][4], uint32_t slot) {
#pragma unroll
    for (int m = 0; m < kProducts; ++m) {
      const uint4 b = load_shared(base + bias_at + m * 128);
      d[m][0] = __uint_as_float(b.x), d[m][1] = __uint_as_float(b.y);
      d[m][2] = __uint_as_float(b.z), d[m][3] = __uint_as_float(b.w);
    }
    add_products(d, w_x, kNotOfX, kX + slot);
  };

  float z[kProducts][4], next[kProducts][4], c[kStates][kColumns] = {};
  const uint32_t put = base + 2 * q * kRow + 2 * Rows::state(warp, g, 0);
  uint32_t slot = 0, h = kH;  // of x and of the state before this step
  copies_wait<kAhead - 2>();
  __syncthreads();
  input_products(z, slot);
  for (int n = 0; n < steps; ++n) {
    copies_wait<kAhead - 3>();  // x of the next step
    __syncthreads();
    add_products(z, w_h, kNotOfH, h);
    bring((slot + (kAhead - 1) * kSlot) % (kAhead * kSlot), n + kAhead - 1);
    if (n > 0) take(h, n - 1);
    there += stride;
    asm volatile("" : "+l"(there));  // one pointer, whatever its role
    slot = (slot + kSlot) % (kAhead * kSlot);
    if (early) input_products(next, slot);
    h ^= kSlot;
    float out[kStates][kColumns];
#pragma unroll
    for (int column = 0; column < kColumns; ++column)
#pragma unroll
      for (int half = 0; half < kStates; ++half) {
        const float gates[4] = {Rows::of(z, 0, half, column), Rows::of(z, 1, half, column),
                                Rows::of(z, 2, half, column), Rows::of(z, 3, half, column)};
        out[half][column] = cell<kCell>(gates, c[half][column]);
      }
    auto put_states = [&](uint32_t at, const float(&v)[kStates][kColumns], int column) {
      if constexpr (kStates == 2)
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(pack_bf16(v[0][column], v[1][column]))
                     : "memory");
      else
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(at), "h"(bf16(v[0][column]).bits) : "memory");
    };
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      put_states(put + h + column * kRow, out, column);
      if (keeps) put_states(put + h + (kC - kH) + column * kRow, c, column);
    }
    if (early) {
#pragma unroll
      for (int m = 0; m < kProducts; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) z[m][e] = next[m][e];
    } else {
      input_products(z, slot);
    }
  }
  copies_wait<0>();
  __syncthreads();
  take(h, steps - 1);
}

template <Cell kCell, bool kRagged>
void launch(const LstmPersistentForward& a, void* stream) {
  auto blocks = [&](int64_t images) { return div_up(a.s.b, images) * 2 * a.s.h; };
  auto run = [&](void (*kernel)(LstmPersistentForward), int warps, int64_t images) {
    kernel<<<unsigned(blocks(images)), 32 * warps, 0, as_stream(stream)>>>(a);
    check_launch("lstm_fwd_resident", stream);
  };
  // 8 warps shorten a step, and so do tiles of 4 images; 4 warps fit more images on a multiprocessor.
  if (blocks(kTile / 2) <= device_limits().sm_count)
    run(lstm_fwd_resident<kCell, kRagged, 8, 1, 2>, 8, kTile / 2);
  else if (blocks(kTile) <= 2 * device_limits().sm_count)
    run(lstm_fwd_resident<kCell, kRagged, 8, 2, 2>, 8, kTile);
  else
    run(lstm_fwd_resident<kCell, kRagged, 4, 2, 3>, 4, kTile);
}

}  // namespace

bool lstm_fits_persistent(const LstmPersistentForward& a, int64_t width) {
  constexpr int64_t most = 2147483647;
  return width == kWidth && a.s.w == kWidth && aligned16(a.x, a.w_ih, a.w_hh, a.y, a.cells) &&
         device_limits().capability >= 80 && a.s.t < most - kAhead && a.s.h < most / (4 * kWidth) &&
         div_up<int64_t>(a.s.b, kTile / 2) * 2 * a.s.h <= most;
}

void lstm_fwd_persistent(LstmPersistentForward a, void* stream) {
  a.cells_after_y = reinterpret_cast<const char*>(a.cells) - reinterpret_cast<const char*>(a.y);
  const bool ragged = a.s.offsets != nullptr;
  if (a.s.cell == Cell::lstm)
    ragged ? launch<Cell::lstm, true>(a, stream) : launch<Cell::lstm, false>(a, stream);
  else
    ragged ? launch<Cell::gru, true>(a, stream) : launch<Cell::gru, false>(a, stream);
}

}  // namespace occam::kernels
