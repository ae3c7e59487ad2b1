// Backward for rows of at most 208 tokens and d = 64, every product once. A warpgroup has 64 keys, whose dk
// and dv stay in its registers, and walks over the queries, 32 at a time, with transposed scores (rows are
// keys). The gradients of the scores of 32 queries meet in shared memory; the warpgroups take turns to make
// dq of them:
//   s' = k q'   dp' = v g'   dv += p' g   dk += ds' q   dq' = k' ds    (' transposes)
#include "ops/attention/backward.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kQueries = 32;  // of a step

template <int kTokens>
constexpr int kBlocks = kGroups<kTokens> == 1   ? 3
                        : kGroups<kTokens> == 2 ? 2
                                                : 1;
template <int kTokens>
constexpr int64_t kBytes = (2 * 4 * kTokens + kGroups<kTokens> * kQueries) * kSwizzleColumns * 2 +
                           2 * kTokens * 4 + 1024;

#ifdef OCCAM_WARPGROUP

/// Barriers of the block where some only report and go on.
constexpr int kReady = 5, kFree = 6;  // kFree + 1 too: in turn, since a warp may be a step ahead of others
__device__ __forceinline__ void arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void wait_for(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/// Four 8 x 8 matrices to shared memory, transposed; addresses as ldmatrix takes them.
__device__ __forceinline__ void store_transposed(bf16* row, const uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}
/// An 8 x 8 matrix held by a warp, transposed.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

/// What a warpgroup knows of the head it works on.
struct Work {
  Walk walk;
  uint32_t k, ds;  // row 0 of the keys, of the first part of ds
  bf16* own_ds;    // its part of ds: [32 queries][64 keys]
  float scale;
  int group;
  bf16* gq;  // row 0 of the head
  int stride, t;
};

/// kCount queries from `query` on, with their dq when it is this warpgroup's turn.
template <int kTokens, int kCount>
__device__ __forceinline__ void step(const Work& w, int query, float (&dk)[32], float (&dv)[32]) {
  constexpr int kAll = kGroups<kTokens>, kThreads = kAll * kGroup;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) % kGroup / kWarp;
  uint32_t b[kCount / 16][4];
  walk<kCount>(w.walk, query, dk, dv, b);
  const int turn = query / kQueries % kAll, last = (turn + kAll - 1) % kAll;
  if (query > 0 && last != w.group) wait_for(kFree + (query / kQueries - 1) % 2, kThreads);
#pragma unroll
  for (int n = 0; n < kCount / 16; ++n)
    store_transposed(w.own_ds + tile_at(n * 16 + lane / 16 * 8 + lane % 8, warp * 2 + lane / 8 % 2), b[n]);
  fence_async();
  wgmma_wait<0>();
  pin(dv);
  pin(dk);
  if (turn != w.group) return arrive(kReady, kThreads);
  wait_for(kReady, kThreads);
  float dq[kCount / 2] = {};
  constexpr uint32_t kPart = kQueries * kSwizzleColumns * 2 / 16;
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k)
    wgmma<kCount, true, false>(dq, w.k + k * kStepAcross, w.ds + k / 4 * kPart + k % 4 * kStepAlong, k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  pin(dq);
  named_sync(w.group + 1, kGroup);  // all of its warps have read ds
  if (query + kQueries < w.t) arrive(kFree + query / kQueries % 2, kThreads);  // else nobody waits
  bf16* to = w.gq + warp * 16 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kCount / 2; i += 2) {
    uint32_t pair = transposed(pack_bf16(dq[i] * w.scale, dq[i + 1] * w.scale));
    int row = query + i / 4 * 8 + lane / 4;
    if (row < w.t) *reinterpret_cast<uint32_t*>(to + row * w.stride + i % 4 / 2 * 8) = pair;
  }
}

#endif

template <int kTokens>
__global__ void __launch_bounds__(kGroups<kTokens>* kGroup, kBlocks<kTokens>)
    attention_short_bwd(Attention<bf16> a, int64_t heads, const __grid_constant__ TensorMap qkv,
                        const __grid_constant__ TensorMap gy, const __grid_constant__ TensorMap gqkv) {
#ifdef OCCAM_WARPGROUP
  constexpr int kThreads = kGroups<kTokens> * kGroup, kTile = kTokens * kSwizzleColumns;
  constexpr int kPieces = (kTokens * 8 + kThreads - 1) / kThreads;
  bf16* tiles = reinterpret_cast<bf16*>(aligned_room());  // [2][k, v, q, g]
  bf16* ds = tiles + 8 * kTile;                           // [warpgroups][queries of a step][64 keys]
  float* lse = reinterpret_cast<float*>(ds + kGroups<kTokens> * kQueries * kSwizzleColumns);
  float* delta = lse + kTokens;
  const int t = int(a.t), lane = int(threadIdx.x) % kWarp;
  const int group = warp_here() / 4, row = warp_here() * 16;  // of the warp
  const int64_t stride_y = a.h * a.d, stride = 3 * stride_y;
  __shared__ uint64_t barriers[2];
  const uint32_t full = shared_address(barriers);  // 8 bytes a buffer
  auto copy = [&](int64_t head, int buffer) {
    const int column = int(uint32_t(head) % uint32_t(a.h)) * kSwizzleColumns, width = int(stride_y),
              image = int(uint32_t(head) / uint32_t(a.h));
    bf16* to = tiles + buffer * 4 * kTile;
    const uint32_t done = full + 8 * buffer;
    barrier_expect(done, 4 * kTile * 2);
    load_box(shared_address(to), &qkv, width + column, 0, image, done);
    load_box(shared_address(to + kTile), &qkv, 2 * width + column, 0, image, done);
    load_box(shared_address(to + 2 * kTile), &qkv, column, 0, image, done);
    load_box(shared_address(to + 3 * kTile), &gy, column, 0, image, done);
  };
  // y of kPieces rows, kThreads / 8 apart, and 8 columns; of the last row for rows that do not exist.
  uint4 y[kPieces];
  float log_sum;
  auto fetch = [&](int64_t head) {
    const Head at = head_of(a, head);
    const int thread = thread_here(), width = int(stride_y);
    const bf16* from = a.y + at.y + thread % 8 * 8;
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      y[i] = *reinterpret_cast<const uint4*>(from + min(thread / 8 + i * (kThreads / 8), t - 1) * width);
    log_sum = thread < t ? a.lse[at.stat + thread] * kLog2e : 0;
  };
  // delta = y . g, 8 lanes a row, of what fetch() brought.
  auto finish = [&](const bf16* g) {
    const int thread = thread_here();
    g += tile_at(thread / 8, thread % 8);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int at = thread / 8 + i * (kThreads / 8);
      float sum = 0;
      if ((i + 1) * kThreads <= kTokens * 8 || at < kTokens) {
        uint4 other = *reinterpret_cast<const uint4*>(g + i * (kThreads / 8) * kSwizzleColumns);
        const uint32_t u[4] = {y[i].x, y[i].y, y[i].z, y[i].w}, v[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
        for (int j = 0; j < 4; ++j)
          sum += __uint_as_float(u[j] << 16) * __uint_as_float(v[j] << 16) +
                 __uint_as_float(u[j] & 0xffff0000u) * __uint_as_float(v[j] & 0xffff0000u);
      }
      sum = warp_reduce<8>(sum, SumOp{});
      if (at < kTokens && thread % 8 == 0) delta[at] = sum;
    }
    if (thread < kTokens) lse[thread] = log_sum;
  };

  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    barrier_init(full + 8, 1);
    barrier_init_fence();
    copy(blockIdx.x, 0);
  }
  fetch(blockIdx.x);
  __syncthreads();
  int turn = 0;
  for (int64_t head = blockIdx.x; head < heads; head += gridDim.x, ++turn) {
    const int64_t next = head + gridDim.x;
    bf16* now = tiles + turn % 2 * 4 * kTile;
    barrier_wait(full + turn % 2 * 8, turn / 2 % 2);
    finish(now + 3 * kTile);
    store_wait_read<0>();  // those of the head before have left the other buffer
    __syncthreads();
    if (threadIdx.x == 0 && next < heads) copy(next, (turn + 1) % 2);
    __syncwarp();
    Head at = head_of(a, head);
    bf16* v = now + kTile;
    Work w{.walk = {.own_k = operand(shared_address(now + group * 64 * kSwizzleColumns)),
                    .own_v = operand(shared_address(v + group * 64 * kSwizzleColumns)),
                    .q = operand(shared_address(now + 2 * kTile)),
                    .g = operand(shared_address(now + 3 * kTile)),
                    .lse = lse,
                    .delta = delta,
                    .factor = a.scale * kLog2e,
                    .attended = {}},
           .k = operand(shared_address(now)),
           .ds = operand(shared_address(ds)),
           .own_ds = ds + group * kQueries * kSwizzleColumns,
           .scale = a.scale,
           .group = group,
           .gq = a.gqkv + at.qkv,
           .stride = int(stride),
           .t = t};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int key = row + lane / 4 + half * 8;
      w.walk.attended[half] = key < t && (at.mask == nullptr || at.mask[key] != 0);
    }
    float dk[32] = {}, dv[32] = {};
    constexpr int kWhole = kTokens / kQueries * kQueries;
#pragma unroll 1
    for (int query = 0; query < kWhole && query < t; query += kQueries)
      step<kTokens, kQueries>(w, query, dk, dv);
    if constexpr (kWhole < kTokens)
      if (kWhole < t) step<kTokens, kTokens - kWhole>(w, kWhole, dk, dv);
    // In any case: registers that might keep their value would be kept through all of the above.
    fetch(next < heads ? next : head);
    __syncthreads();  // the tiles are not read any more: results pass through them
    if (row < t) {
      const int column = int(uint32_t(head) % uint32_t(a.h)) * kSwizzleColumns,
                image = int(uint32_t(head) / uint32_t(a.h));
      copy_rows_back(dk, a.scale, a.scale, now, row, &gqkv, int(stride_y) + column, image);
      copy_rows_back(dv, 1, 1, v, row, &gqkv, 2 * int(stride_y) + column, image);
    }
  }
  store_wait_read<0>();
#endif
}

}  // namespace

void attention_bwd_short(const Attention<bf16>& a, void* stream) {
  for_tokens_of(a.t, [&]<int kTokens>() {
    auto kernel = attention_short_bwd<kTokens>;
    int64_t heads = a.b * a.h, at_once = int64_t(device_limits().sm_count) * kBlocks<kTokens>;
    allow_shared(kernel, "attention_short_bwd", kBytes<kTokens>);
    kernel<<<unsigned(std::min(heads, at_once)), kGroups<kTokens> * kGroup, size_t(kBytes<kTokens>),
             as_stream(stream)>>>(a, heads, tensor_map(a.qkv, a.b, a.t, 3 * a.h * a.d, kTokens),
                                  tensor_map(a.gy, a.b, a.t, a.h * a.d, kTokens),
                                  tensor_map(a.gqkv, a.b, a.t, 3 * a.h * a.d, 16));
    check_launch("attention_short_bwd", stream);
  });
}

}  // namespace occam::kernels
