// Backward of bf16 heads of width 64 on Hopper, LSTM or GRU, in one pass over time, from x, y, c and gy to
// the gradients of x, weights and biases: README.md, "Backward on Hopper". A block has a (direction, head)
// and kImages images, and four warpgroups that pass tiles on through shared memory:
//   gates    z = W [x_t; h_{t-1}] of a step, activated: the factors of the cell's way back (fused_bwd.cuh)
//   chain    dh = gy + W_hh' dz of the step after; dc; dz, with the factors; dx = W_ih' dz beside it
//   weights  two of them, a pair of steps at a time: dW += dz [x; h]', half of the gates each
#include "ops/lstm/fused_bwd.cuh"

#include "core/cuda/launch.h"

namespace occam::kernels {

using namespace cuda;
using namespace fused_bwd;

namespace {

#ifdef OCCAM_WARPGROUP

template <Cell kCell, bool kRagged, int kImages>
__device__ __forceinline__ void chain(const Work& w, const Maps& maps, bool wants_x, float* gb) {
  using R = Room<kImages>;
  const int thread = int(threadIdx.x) % kGroup, lane = thread % kWarp, warp = thread / kWarp;
  const uint32_t w_ih = operand(w.room + R::w_ih), w_hh = operand(w.room + R::w_hh);
  float dh[kImages / 2], dc[kImages / 2] = {}, dx[kImages / 2], sums[4][2] = {};
  uint32_t gy[kImages / 8][2];
  auto tile_of = [&](int step) {
    return w.room + R::gz + uint32_t(step / 2 % kSlots) * 4 * R::kPair + step % 2 * R::kStep;
  };
  auto load_gy = [&](int step) {
    load_units<kImages>(gy, w.room + R::gy + uint32_t(step / 2 % kSlots) * R::kPair + step % 2 * R::kStep,
                        warp, lane);
  };
  // Products of W_hh and W_ih with a step's dz.
  auto times = [&](float(&d)[kImages / 2], bool of_h, uint32_t z) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kGates / 16; ++k)
      if (given_gate(kCell, k / 4, of_h) >= 0)
        wgmma<kImages, true, false>(d, (of_h ? w_hh : w_ih) + k * kStepAcross,
                                    z + k / 4 * (R::kPair / 16) + k % 4 * kStepAlong, k > 0);
    wgmma_commit();
  };
  // dx of a step is made while the cell of the step after is computed, goes to its tile after that and out
  // of it another step later. Before step 0 it is made of what happens to be there, and not sent.
  auto keep_dx = [&](int step) {
    uint32_t packed[kImages / 8][2];
#pragma unroll
    for (int j = 0; j < kImages / 8; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        packed[j][half] = pack_bf16(dx[4 * j + 2 * half], dx[4 * j + 2 * half + 1]);
    store_units<kImages>(packed, w.room + R::gx + step % 2 * R::kStep, warp, lane);
  };
  auto send_dx = [&](int step) {
    if (!wants_x) return;  // made all the same: a branch around wgmma would make all of them wait
    store_step<kRagged, kImages>(w, w.room + R::gx + step % 2 * R::kStep, maps.gx,
                                 (w.head * 2 + w.direction) * kWidth, 2 * w.pairs - 1 - step);
  };
  w.wait(kGyFull, kSlots, 0);
  load_gy(0);
  float gh[kImages / 2];  // dh with gy
#pragma unroll
  for (int i = 0; i < kImages / 2; ++i)
    gh[i] = i % 2 == 0 ? low(gy[i / 4][i / 2 % 2]) : high(gy[i / 4][i / 2 % 2]);
#pragma unroll 1
  for (int step = 0; step < 2 * w.pairs; ++step) {
    const int pair = step / 2, s = step % 2;
    times(dx, false, operand(tile_of(step + 3)));  // of the step before
    w.wait(kFactorsFull, kSlots, step);
    if (s == 0 && pair >= kSlots) w.wait(kGzFree, kSlots, pair - kSlots);
    const uint32_t from = w.room + R::factors + uint32_t(step % kSlots) * R::kFactors + uint32_t(thread) * 16;
    const uint32_t tile = tile_of(step);
    uint32_t gz[4][kImages / 8][2];
#pragma unroll
    for (int j = 0; j < kImages / 8; ++j) {
      uint32_t words[12];
#pragma unroll
      for (int v = 0; v < 3; ++v)
        asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(words[4 * v]), "=r"(words[4 * v + 1]), "=r"(words[4 * v + 2]),
                       "=r"(words[4 * v + 3])
                     : "r"(from + (j * 3 + v) * kGroup * 16)
                     : "memory");
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float factor[6][2], d[4][2];
#pragma unroll
        for (int n = 0; n < 6; ++n) unpack_f16(words[half * 6 + n], factor[n]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int at = 4 * j + 2 * half + e;
          const float c = fmaf(gh[at], factor[0][e], dc[at]);
          d[0][e] = c * factor[1][e];
          d[1][e] = c * factor[2][e];
          d[2][e] = c * factor[3][e];
          d[3][e] = (kCell == Cell::lstm ? gh[at] : c) * factor[4][e];
          dc[at] = c * factor[5][e];
        }
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          gz[q][j][half] = pack_bf16(d[q][0], d[q][1]);
          sums[q][half] += d[q][0] + d[q][1];
        }
      }
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) store_units<kImages>(gz[q], tile + q * R::kPair, warp, lane);
    fence_async();
    if (starts_copies<kRagged>()) store_wait_read<0>();
    __syncwarp();
    named_sync(2, kGroup);
    if (starts_copies<kRagged>()) {
      if (thread == 0) w.arrive(kFactorsFree, kSlots, step);
      if (s == 1) {
        if (thread == 0) w.arrive(kGzFull, kSlots, pair);
        if (pair + kSlots < w.pairs) fetch<kRagged, kImages>(w, maps.gy, R::gy, kGyFull, pair + kSlots, 0);
      }
      if (step >= 2) send_dx(step - 2);
    }
    __syncwarp();
    times(dh, true, operand(tile));
    wgmma_wait<1>();
    pin(dx);
    keep_dx(step + 1);  // of the step before
    if (s == 1 && pair + 1 < w.pairs) w.wait(kGyFull, kSlots, pair + 1);
    load_gy(step + 1);
    wgmma_wait<0>();
    pin(dh);
#pragma unroll
    for (int i = 0; i < kImages / 2; ++i)
      gh[i] = dh[i] + (i % 2 == 0 ? low(gy[i / 4][i / 2 % 2]) : high(gy[i / 4][i / 2 % 2]));
  }
  times(dx, false, operand(tile_of(2 * w.pairs - 1)));
  if (starts_copies<kRagged>()) store_wait_read<0>();
  named_sync(2, kGroup);
  wgmma_wait<0>();
  pin(dx);
  keep_dx(2 * w.pairs - 1);
  fence_async();
  named_sync(2, kGroup);
  if (starts_copies<kRagged>()) {
    send_dx(2 * w.pairs - 2);
    send_dx(2 * w.pairs - 1);
    store_wait_read<0>();
  }
  if (gb == nullptr) return;
  const int last = thread_again() % kGroup, unit = last / kWarp * 16 + last % kWarp / 4;
#pragma unroll
  for (int q = 0; q < 4; ++q)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = warp_reduce<4>(sums[q][half], SumOp{});
      if (last % 4 == 0) gb[q * kWidth + half * 8 + unit] = sum;
    }
}

template <bool kRagged, int kImages>
__device__ __forceinline__ void weights(const Work& w, const Maps& maps, int group, float* gw) {
  using R = Room<kImages>;
  const int thread = int(threadIdx.x) % kGroup, lane = thread % kWarp, warp = thread / kWarp;
  float sums[2][64] = {};
#pragma unroll 1
  for (int pair = 0; pair < w.pairs; ++pair) {
    w.wait(kInputsFull, kInputSlots, pair);
    w.wait(kGzFull, kSlots, pair);
    const uint32_t z = w.room + R::gz + (uint32_t(pair % kSlots) * 4 + 2 * group) * R::kPair;
    const uint32_t xh = operand(w.room + R::inputs + uint32_t(pair % kInputSlots) * 2 * R::kPair, R::kPair);
    if (gw != nullptr) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 2 * kImages / 16; ++k)
#pragma unroll
        for (int q = 0; q < 2; ++q)
          wgmma<128, true, true>(sums[q], operand(z) + q * (R::kPair / 16) + k * kStepAcross,
                                 xh + k * kStepAcross, true);
      wgmma_commit();
      wgmma_wait<0>();
      pin(sums[0]);
      pin(sums[1]);
    }
    if (lane == 0) {
      w.arrive(kGzFree, kSlots, pair);
      w.arrive(kInputsFree, kInputSlots, pair);
    }
    if (group == 0 && starts_copies<kRagged>() && pair + kInputSlots < w.pairs) {
      w.wait(kInputsFree, kInputSlots, pair);
      fetch_inputs<kRagged, kImages>(w, maps, pair + kInputSlots);
    }
    __syncwarp();
  }
  if (gw == nullptr) return;
#pragma unroll
  for (int q = 0; q < 2; ++q)
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = (2 * group + q) * kWidth + warp * 16 + half * 8 + lane / 4;
        *reinterpret_cast<float2*>(gw + row * 2 * kWidth + j * 8 + lane % 4 * 2) =
            make_float2(sums[q][4 * j + 2 * half], sums[q][4 * j + 2 * half + 1]);
      }
}

#endif

template <Cell kCell, bool kRagged, int kImages>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_bwd_pass(LstmFusedBackward a, const __grid_constant__ Maps maps) {
#ifdef OCCAM_WARPGROUP
  using R = Room<kImages>;
  extern __shared__ unsigned char dynamic[];
  unsigned char* room = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024;
  Work w{.room = shared_address(room),
         .barriers = shared_address(room) + R::barriers,
         .places = shared_address(room) + R::places,
         .t = int(a.s.t),
         .pairs = int(a.s.t + 1) / 2,
         .direction = int(blockIdx.y) / int(a.s.h),
         .head = int(blockIdx.y) % int(a.s.h),
         .heads = int(a.s.h),
         .first = int(blockIdx.x) * kImages,
         .which = blockIdx.y};
  for (int i = int(threadIdx.x); i < 2 * kGates * 8; i += kThreads) {
    const int row = i / 8, piece = i % 8, given = given_gate(kCell, row % kGates / kWidth, row >= kGates);
    uint4 v = make_uint4(0, 0, 0, 0);
    if (given >= 0) {
      const int64_t from = w.which * given_gates(kCell) * kWidth + given * kWidth + row % kWidth;
      v = *reinterpret_cast<const uint4*>((row < kGates ? a.w_ih : a.w_hh) + from * kWidth + piece * 8);
    }
    *reinterpret_cast<uint4*>(room + tile_at(row, piece) * 2) = v;
  }
  if constexpr (kRagged) {
    int* places = reinterpret_cast<int*>(room + R::places);
    if (threadIdx.x < kImages) {
      const int64_t image = w.first + int(threadIdx.x);
      places[2 * threadIdx.x] = image < a.s.b ? int(a.s.begin(image)) : 0;
      places[2 * threadIdx.x + 1] = image < a.s.b ? int(a.s.length(image)) : 0;
    }
    __syncthreads();
    w.t = 1;
    for (int i = 0; i < kImages; ++i) w.t = max(w.t, places[2 * i + 1]);
    w.pairs = (w.t + 1) / 2;
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < kInputSlots; ++i) {
      barrier_init(w.barrier(kInputsFull + i), 1);
      barrier_init(w.barrier(kInputsFree + i), 8);
    }
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(w.barrier(kCellsFull + i), 1);
      barrier_init(w.barrier(kGyFull + i), 1);
      barrier_init(w.barrier(kFactorsFull + i), 4);
      barrier_init(w.barrier(kFactorsFree + i), 1);
      barrier_init(w.barrier(kGzFull + i), 1);
      barrier_init(w.barrier(kGzFree + i), 8);
    }
    barrier_init_fence();
  }
  if (kRagged) __syncthreads();  // for the others of the first warpgroup
  if (threadIdx.x < kGroup && starts_copies<kRagged>()) {
#pragma unroll 1
    for (int pair = 0; pair < kInputSlots && pair < w.pairs; ++pair)
      fetch_inputs<kRagged, kImages>(w, maps, pair);
#pragma unroll 1
    for (int pair = 0; pair < kSlots && pair < w.pairs; ++pair) {
      if (kCell == Cell::lstm) fetch<kRagged, kImages>(w, maps.cells, R::cells, kCellsFull, pair, 1);
      fetch<kRagged, kImages>(w, maps.gy, R::gy, kGyFull, pair, 0);
    }
  }
  fence_async();
  __syncthreads();
  const int64_t tile = (int64_t(blockIdx.x) * gridDim.y + w.which);
  const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / kGroup, 0);
  if (group < 2) {
    more_registers<160>();
    weights<kRagged, kImages>(w, maps, group,
                              a.gw_parts == nullptr ? nullptr : a.gw_parts + tile * kGates * 2 * kWidth);
  } else if (group == 2) {
    fewer_registers<96>();
    gates<kCell, kRagged, kImages>(w, maps, a.b_ih, a.b_hh);
  } else {
    fewer_registers<96>();
    chain<kCell, kRagged, kImages>(w, maps, a.gx_parts != nullptr,
                                   a.gb_parts == nullptr ? nullptr : a.gb_parts + tile * kGates);
  }
#endif
}

/// The sums of what the blocks made, in a fixed order: of the two directions of gx, of the parts of the
/// weights' gradients over the images.
__global__ void __launch_bounds__(256) lstm_bwd_sum(LstmFusedBackward a, int64_t tiles) {
  const int64_t rows = 2 * a.s.h * kGates,
                packs = a.gx_parts == nullptr ? 0 : a.s.rows() * a.s.h * kWidth / 8;
  const int64_t weights = a.gw_parts == nullptr ? 0 : rows * 2 * kWidth / 4,
                biases = a.gb_parts == nullptr ? 0 : rows / 4;
  OCCAM_GRID_LOOP(i, weights + biases + packs) {
    if (i < weights + biases) {
      const bool is_bias = i >= weights;
      const int64_t at = is_bias ? i - weights : i, stride = is_bias ? biases : weights;
      const float4* from = reinterpret_cast<const float4*>(is_bias ? a.gb_parts : a.gw_parts) + at;
      float4 sum = from[0];
      for (int64_t n = 1; n < tiles; ++n) {
        const float4 more = from[n * stride];
        sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
      }
      // Of the parts a row is 64 of w_ih, 64 of w_hh; a GRU's third gate has a row for each.
      const int64_t row = is_bias ? 4 * at : at / 32, column = is_bias ? 0 : at % 32;
      for (bool of_h : {false, true}) {
        const int given = given_gate(a.s.cell, int(row % kGates / kWidth), of_h);
        const int64_t to = (row / kGates * given_gates(a.s.cell) + given) * kWidth + row % kWidth;
        float* g = is_bias ? (of_h ? a.gb_hh : a.gb_ih) : (of_h ? a.gw_hh : a.gw_ih);
        if (g == nullptr || given < 0 || (!is_bias && of_h != column >= 16)) continue;
        reinterpret_cast<float4*>(g)[is_bias ? to / 4 : to * 16 + column % 16] = sum;
      }
    } else {
      const int64_t at = i - weights - biases;
      const uint4* both = reinterpret_cast<const uint4*>(a.gx_parts) + at / 8 * 16 + at % 8;
      const uint4 u = both[0], v = both[8];
      auto add = [](uint32_t p, uint32_t q) {
        return pack_bf16(__uint_as_float(p << 16) + __uint_as_float(q << 16),
                         __uint_as_float(p & 0xffff0000u) + __uint_as_float(q & 0xffff0000u));
      };
      reinterpret_cast<uint4*>(a.gx)[at] =
          make_uint4(add(u.x, v.x), add(u.y, v.y), add(u.z, v.z), add(u.w, v.w));
    }
  }
}

template <Cell kCell, bool kRagged, int kImages>
void launch(const LstmFusedBackward& a, void* stream) {
  const LstmShape& s = a.s;
  const int64_t tiles = div_up<int64_t>(s.b, kImages), row = s.h * kWidth;
  auto map = [&](const bf16* data, int64_t columns) {
    return kRagged ? tensor_map(data, s.rows(), columns, 1) : tensor_map(data, s.b, s.t, columns, 1, kImages);
  };
  Maps maps{.x = map(a.x, row),
            .y = map(a.y, 2 * row),
            .cells = map(kCell == Cell::lstm ? a.cells : a.y, 2 * row),
            .gy = map(a.gy, 2 * row),
            .gx = map(a.gx_parts != nullptr ? a.gx_parts : a.gy, 2 * row)};
  allow_shared(lstm_bwd_pass<kCell, kRagged, kImages>, "lstm_bwd_pass", Room<kImages>::bytes);
  lstm_bwd_pass<kCell, kRagged, kImages>
      <<<dim3(unsigned(tiles), unsigned(2 * s.h)), 4 * kGroup, Room<kImages>::bytes, as_stream(stream)>>>(
          a, maps);
  check_launch("lstm_bwd_pass", stream);
  lstm_bwd_sum<<<grid_for(s.rows() * row / 8, 256), 256, 0, as_stream(stream)>>>(a, tiles);
  check_launch("lstm_bwd_sum", stream);
}

}  // namespace

int lstm_bwd_images(const LstmFusedBackward& a, int64_t width) {
  if (width != kWidth || a.s.w != kWidth || !aligned16(a.x, a.w_ih, a.w_hh, a.y, a.cells, a.gy)) return 0;
  if (device_limits().capability != 90 || !tensor_maps_supported()) return 0;
  if (2 * a.s.h > 65535 || a.s.t > 1 << 30 || a.s.b > 1 << 30) return 0;  // grid.y; coordinates
  if (a.s.capacity > 1 << 30) return 0;
  static const bool built = [] {
    cudaFuncAttributes attributes;
    OCCAM_CUDA_CHECK(cudaFuncGetAttributes(&attributes, lstm_bwd_pass<Cell::lstm, false, 8>));
    return attributes.maxThreadsPerBlock == 4 * kGroup;
  }();
  if (!built) return 0;
  // The fewest rounds of blocks, by what a step takes.
  int best = 24;
  double least = 1e30;
  for (int images : {8, 16, 24}) {
    int64_t blocks = div_up<int64_t>(a.s.b, images) * 2 * a.s.h;
    double time = double(div_up<int64_t>(blocks, device_limits().sm_count)) * (0.8 + 0.035 * images);
    if (time < least) least = time, best = images;
  }
  return best;
}

void lstm_bwd_fused(const LstmFusedBackward& a, void* stream) {
  auto of = [&]<Cell kCell, bool kRagged>() {
    if (a.images == 8) return launch<kCell, kRagged, 8>(a, stream);
    if (a.images == 16) return launch<kCell, kRagged, 16>(a, stream);
    launch<kCell, kRagged, 24>(a, stream);
  };
  auto of_cell = [&]<Cell kCell>() {
    if (a.s.offsets != nullptr) return of.template operator()<kCell, true>();
    of.template operator()<kCell, false>();
  };
  if (a.s.cell == Cell::lstm) return of_cell.template operator()<Cell::lstm>();
  of_cell.template operator()<Cell::gru>();
}

}  // namespace occam::kernels
