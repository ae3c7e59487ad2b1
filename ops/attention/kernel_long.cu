// Kernels for d = 64 and rows of any length. A block has 128 rows of one side, 64 a warpgroup, and streams
// the other side through shared memory, the next tile being copied while it computes. Backward takes two
// kernels: one has keys (dk, dv), one queries (dq).
#include "ops/attention/backward.cuh"
#include "ops/attention/forward.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 2 * kGroup, kRows = 128;
constexpr int kKeys = 128, kKeysBackward = 64, kQueries = 64;  // streamed
constexpr int64_t kBytesForward = (kRows + 4 * kKeys) * kSwizzleColumns * 2 + 2 * kKeys * 4 + 1024,
                  kBytesKv = (2 * kRows + 4 * kQueries) * kSwizzleColumns * 2 + 4 * kQueries * 4 + 1024,
                  kBytesQ =
                      (2 * kRows + 4 * kKeysBackward) * kSwizzleColumns * 2 + 2 * kKeysBackward * 4 + 1024;

__global__ void __launch_bounds__(kThreads, 2) attention_long_fwd(Attention<bf16> a, int64_t tiles) {
#ifdef OCCAM_WARPGROUP
  constexpr int kTile = kKeys * kSwizzleColumns;
  bf16* q = reinterpret_cast<bf16*>(aligned_room());
  bf16* kv = q + kRows * kSwizzleColumns;  // [2][k, v]
  float* biases = reinterpret_cast<float*>(kv + 4 * kTile);
  const Head at = head_of(a, blockIdx.x / tiles);
  const int from = int(blockIdx.x % tiles) * kRows, t = int(a.t) - from;  // t: queries from there on
  const int first = warp_here() / 4 * 64, row = warp_here() * 16;
  const int64_t stride_y = a.h * a.d, stride = 3 * stride_y;
  const bf16* keys = a.qkv + at.qkv + stride_y;
  const float factor = a.scale * kLog2e;
  auto copy = [&](int key) {
    int buffer = key / kKeys % 2, left = int(a.t) - key;
    copy_tile<kKeys>(kv + 2 * buffer * kTile, keys + key * stride, stride, left);
    copy_tile<kKeys>(kv + (2 * buffer + 1) * kTile, keys + stride_y + key * stride, stride, left);
    if (at.mask != nullptr || left < kKeys || !(factor > 0))
      copy_bias<kKeys>(biases + buffer * kKeys, at.mask == nullptr ? nullptr : at.mask + key, left,
                       int(threadIdx.x), kThreads);
  };
  copy_tile<kRows>(q, a.qkv + at.qkv + from * stride, stride, t);
  copy(0);
  copies_commit();
  const uint32_t own = operand(shared_address(q + first * kSwizzleColumns)),
                 tile = operand(shared_address(kv));
  Rows r = {{-infinity_<float>(), -infinity_<float>()}, {}, {}};
#pragma unroll 1
  for (int key = 0; key < int(a.t); key += kKeys) {
    if (key + kKeys < int(a.t)) copy(key + kKeys);
    copies_commit();
    copies_wait<1>();
    fence_async();
    __syncthreads();
    constexpr uint32_t kNext = kKeys / 16 * kStepAcross;
    const int buffer = key / kKeys % 2, left = int(a.t) - key;
    const float* bias =
        at.mask != nullptr || left < kKeys || !(factor > 0) ? biases + buffer * kKeys : nullptr;
    const uint32_t k = tile + buffer * (2 * kNext);
    if (first < t) attend<kKeys, false, 0>(r, own, k, k + kNext, factor, bias, left, row < t);
    __syncthreads();  // the next but one keys will be copied over these
  }
  if (row < t) {
    float inverse[2];
    finish_rows(r, row, a.lse + at.stat + from, t, inverse);
    store_rows(r.o, inverse[0], inverse[1], q, row, a.y + at.y + from * stride_y, stride_y, t);
  }
#endif
}

/// dk and dv.
__global__ void __launch_bounds__(kThreads, 2) attention_long_bwd_kv(Attention<bf16> a, int64_t tiles) {
#ifdef OCCAM_WARPGROUP
  constexpr int kOwn = kRows * kSwizzleColumns, kTile = kQueries * kSwizzleColumns;
  bf16* own = reinterpret_cast<bf16*>(aligned_room());      // [k, v]
  bf16* qg = own + 2 * kOwn;                                // [2][q, g]
  float* stats = reinterpret_cast<float*>(qg + 4 * kTile);  // [2][lse, delta][kQueries]
  const Head at = head_of(a, blockIdx.x / tiles);
  const int from = int(blockIdx.x % tiles) * kRows, t = int(a.t) - from;  // t: keys from there on
  const int first = warp_here() / 4 * 64, row = warp_here() * 16;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t stride_y = a.h * a.d, stride = 3 * stride_y;
  const bf16 *q = a.qkv + at.qkv, *k = q + stride_y + from * stride;
  auto copy = [&](int query) {
    int buffer = query / kQueries % 2, left = int(a.t) - query;
    copy_tile<kQueries>(qg + 2 * buffer * kTile, q + query * stride, stride, left);
    copy_tile<kQueries>(qg + (2 * buffer + 1) * kTile, a.gy + at.y + query * stride_y, stride_y, left);
    int i = thread_here() % kQueries;
    if (threadIdx.x < kQueries)
      stats[2 * buffer * kQueries + i] = i < left ? a.lse[at.stat + query + i] * kLog2e : 0;
    else if (threadIdx.x < 2 * kQueries)
      stats[(2 * buffer + 1) * kQueries + i] = i < left ? a.delta[at.stat + query + i] : 0;
  };
  copy_tile<kRows>(own, k, stride, t);
  copy_tile<kRows>(own + kOwn, k + stride_y, stride, t);
  copy(0);
  copies_commit();
  Walk w{.own_k = operand(shared_address(own + first * kSwizzleColumns)),
         .own_v = operand(shared_address(own + kOwn + first * kSwizzleColumns)),
         .q = 0,
         .g = 0,
         .lse = nullptr,
         .delta = nullptr,
         .factor = a.scale * kLog2e,
         .attended = {}};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int key = row + lane / 4 + half * 8;
    w.attended[half] = key < t && (at.mask == nullptr || at.mask[from + key] != 0);
  }
  float dk[32] = {}, dv[32] = {};
#pragma unroll 1
  for (int query = 0; query < int(a.t); query += kQueries) {
    if (query + kQueries < int(a.t)) copy(query + kQueries);
    copies_commit();
    copies_wait<1>();
    fence_async();
    __syncthreads();
    const int buffer = query / kQueries % 2;
    w.q = operand(shared_address(qg + 2 * buffer * kTile));
    w.g = operand(shared_address(qg + (2 * buffer + 1) * kTile));
    w.lse = stats + 2 * buffer * kQueries;
    w.delta = w.lse + kQueries;
    if (first < t) {
#pragma unroll
      for (int part = 0; part < kQueries; part += 32) {
        uint32_t ds[2][4];
        walk<32>(w, part, dk, dv, ds);
        wgmma_wait<0>();
        pin(dk);
        pin(dv);
      }
    }
    __syncthreads();  // the next but one queries will be copied over these
  }
  if (row < t) {
    bf16* to = a.gqkv + at.qkv + stride_y + from * stride;
    store_rows(dk, a.scale, a.scale, own, row, to, stride, t);
    __syncwarp();
    store_rows(dv, 1, 1, own, row, to + stride_y, stride, t);
  }
#endif
}

/// dq.
__global__ void __launch_bounds__(kThreads, 2) attention_long_bwd_q(Attention<bf16> a, int64_t tiles) {
#ifdef OCCAM_WARPGROUP
  constexpr int kOwn = kRows * kSwizzleColumns, kTile = kKeysBackward * kSwizzleColumns;
  bf16* own = reinterpret_cast<bf16*>(aligned_room());       // [q, g]
  bf16* kv = own + 2 * kOwn;                                 // [2][k, v]
  float* biases = reinterpret_cast<float*>(kv + 4 * kTile);  // [2][kKeysBackward]
  const Head at = head_of(a, blockIdx.x / tiles);
  const int from = int(blockIdx.x % tiles) * kRows, t = int(a.t) - from;  // t: queries from there on
  const int first = warp_here() / 4 * 64, row = warp_here() * 16;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t stride_y = a.h * a.d, stride = 3 * stride_y;
  const bf16 *q = a.qkv + at.qkv, *keys = q + stride_y;
  auto copy = [&](int key) {
    int buffer = key / kKeysBackward % 2, left = int(a.t) - key;
    copy_tile<kKeysBackward>(kv + 2 * buffer * kTile, keys + key * stride, stride, left);
    copy_tile<kKeysBackward>(kv + (2 * buffer + 1) * kTile, keys + stride_y + key * stride, stride, left);
    if (at.mask != nullptr || left < kKeysBackward)
      copy_bias<kKeysBackward>(biases + buffer * kKeysBackward, at.mask == nullptr ? nullptr : at.mask + key,
                               left, int(threadIdx.x), kThreads);
  };
  copy_tile<kRows>(own, q + from * stride, stride, t);
  copy_tile<kRows>(own + kOwn, a.gy + at.y + from * stride_y, stride_y, t);
  copy(0);
  copies_commit();
  const uint32_t own_q = operand(shared_address(own + first * kSwizzleColumns)),
                 own_g = operand(shared_address(own + kOwn + first * kSwizzleColumns));
  const float factor = a.scale * kLog2e;
  float lse[2], delta[2], dq[32] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int mine = row + lane / 4 + half * 8;
    lse[half] = mine < t ? a.lse[at.stat + from + mine] * kLog2e : 0;
    delta[half] = mine < t ? a.delta[at.stat + from + mine] : 0;
  }
#pragma unroll 1
  for (int key = 0; key < int(a.t); key += kKeysBackward) {
    if (key + kKeysBackward < int(a.t)) copy(key + kKeysBackward);
    copies_commit();
    copies_wait<1>();
    fence_async();
    __syncthreads();
    const int buffer = key / kKeysBackward % 2;
    if (first < t) {
      const uint32_t k = operand(shared_address(kv + 2 * buffer * kTile)),
                     v = operand(shared_address(kv + (2 * buffer + 1) * kTile));
      float s[32] = {}, ds[32] = {};
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step)
        wgmma<64, false, false>(s, own_q + step * kStepAlong, k + step * kStepAlong, step > 0);
      wgmma_commit();
#pragma unroll
      for (int step = 0; step < 4; ++step)
        wgmma<64, false, false>(ds, own_g + step * kStepAlong, v + step * kStepAlong, step > 0);
      wgmma_commit();
      wgmma_wait<1>();
      pin(s);
      const float* bias = biases + buffer * kKeysBackward + lane % 4 * 2;
      const bool with_bias = at.mask != nullptr || int(a.t) - key < kKeysBackward;
#pragma unroll
      for (int i = 0; i < 32; i += 4) {
        float2 b = with_bias ? *reinterpret_cast<const float2*>(bias + i * 2) : float2{0, 0};
        s[i] = exp2_fast(s[i] * factor + (b.x - lse[0])),
        s[i + 1] = exp2_fast(s[i + 1] * factor + (b.y - lse[0]));
        s[i + 2] = exp2_fast(s[i + 2] * factor + (b.x - lse[1]));
        s[i + 3] = exp2_fast(s[i + 3] * factor + (b.y - lse[1]));
      }
      wgmma_wait<0>();
      pin(ds);
      uint32_t p[4][4];
#pragma unroll
      for (int i = 0; i < 32; i += 2)
        p[i / 8][i % 8 / 2] =
            pack_bf16(s[i] * (ds[i] - delta[i / 2 % 2]), s[i + 1] * (ds[i + 1] - delta[i / 2 % 2]));
      pin(dq);
      wgmma_fence();
#pragma unroll
      for (int n = 0; n < 4; ++n) wgmma_registers(dq, p[n], k + n * kStepAcross, true);
      wgmma_commit();
      wgmma_wait<0>();
      pin(dq);
    }
    __syncthreads();  // the next but one keys will be copied over these
  }
  if (row < t) store_rows(dq, a.scale, a.scale, own, row, a.gqkv + at.qkv + from * stride, stride, t);
#endif
}

void launch(void (*kernel)(Attention<bf16>, int64_t), const char* name, const Attention<bf16>& a,
            int64_t bytes, void* stream) {
  int64_t tiles = div_up<int64_t>(a.t, kRows);
  allow_shared(kernel, name, bytes);
  kernel<<<unsigned(a.b * a.h * tiles), kThreads, size_t(bytes), as_stream(stream)>>>(a, tiles);
  check_launch(name, stream);
}

}  // namespace

void attention_fwd_long(const Attention<bf16>& a, void* stream) {
  launch(attention_long_fwd, "attention_long_fwd", a, kBytesForward, stream);
}

void attention_bwd_long(const Attention<bf16>& a, void* stream) {
  launch(attention_long_bwd_kv, "attention_long_bwd_kv", a, kBytesKv, stream);
  launch(attention_long_bwd_q, "attention_long_bwd_q", a, kBytesQ, stream);
}

}  // namespace occam::kernels
