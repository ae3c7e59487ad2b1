// Forward for rows of at most 208 tokens and d = 64: a warpgroup has 64 queries and all their scores in
// registers, (from 145 tokens on in two parts), so that there is next to nothing to rescale.
#include "ops/attention/forward.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

/// Blocks that share a multiprocessor: 128 registers a thread.
template <int kTokens>
constexpr int kBlocks = kGroups<kTokens> <= 2 ? 4 / kGroups<kTokens> : 1;
template <int kTokens>
constexpr int64_t kBytes = 2 * (3 * kTokens * kTileRow * 2 + kTokens * 4) + 1024;

/// Grid (blocks, 1) with all warpgroups of a head in a block, or (heads, warpgroups) with one.
template <int kTokens>
__global__ void __launch_bounds__(kGroups<kTokens>* kGroup, kBlocks<kTokens>)
    attention_short_fwd(Attention<bf16> a, int64_t heads) {
#ifdef OCCAM_WARPGROUP
  constexpr int kTile = kTokens * kTileRow;
  bf16* tiles = reinterpret_cast<bf16*>(aligned_room());  // [2][q, k, v]
  float* biases = reinterpret_cast<float*>(tiles + 6 * kTile);
  const int t = int(a.t);
  const int group = int(threadIdx.x) / kGroup, first = (int(blockIdx.y) + group) * 64;
  const int row = first + int(threadIdx.x) % kGroup / kWarp * 16;  // of the warp
  const int64_t stride_y = a.h * a.d;
  const float factor = a.scale * kLog2e;
  const bool with_bias = a.key_mask != nullptr || t <= kTokens - 16;
  auto copy = [&](int64_t head, int buffer) {
    Head at = head_of(a, head);
    for (int part = 0; part < 3; ++part)
      copy_tile<kTokens>(tiles + (buffer * 3 + part) * kTile, a.qkv + at.qkv + part * stride_y, 3 * stride_y,
                         t);
    if (with_bias) copy_bias<kTokens>(biases + buffer * kTokens, at.mask, t);
  };

  copy(blockIdx.x, 0);
  copies_commit();
  int buffer = 0;
  for (int64_t head = blockIdx.x; head < heads; head += gridDim.x, buffer ^= 1) {
    if (head + gridDim.x < heads) copy(head + gridDim.x, buffer ^ 1);
    copies_commit();
    copies_wait<1>();
    share_with_tensor_cores();
    __syncthreads();
    if (first < t) {
      bf16* q = tiles + buffer * 3 * kTile;
      const float* bias = with_bias ? biases + buffer * kTokens : nullptr;
      const uint64_t own = operand(shared_address(q + first * kTileRow)),
                     k = operand(shared_address(q + kTile)), v = operand(shared_address(q + 2 * kTile));
      // All scores at once would leave too few registers beside them at 208.
      constexpr int kPart = kTokens > 144 ? 128 : kTokens;
      Rows r = {};
      attend < kPart, true, kPart<kTokens ? 0 : 16>(r, own, k, v, factor, bias, t, row < t);
      if constexpr (kPart < kTokens) {
        constexpr uint64_t kOn = kPart / 16 * kStepAcross;
        attend<kTokens - kPart, false, 16>(r, own, k + kOn, v + kOn, factor,
                                           with_bias ? bias + kPart : nullptr, t - kPart, row < t);
      }
      group_barrier(group);  // no warp reads queries any more: results take their place
      if (row < t) {
        Head at = head_of(a, head);
        finish_rows(r, q, row, a.lse + at.stat, a.y + at.y, stride_y, t);
      }
    }
    __syncthreads();  // the buffer is free for the next head but one
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
  if (a.d != kTileRow || !aligned16(a.qkv, a.y, a.gy, a.gqkv)) return false;
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
    allow_shared(kernel, "attention_short_fwd", kBytes<kTokens>);
    // Few heads: a block for each 64 queries, so that more multiprocessors share the work.
    bool split = heads * kAll <= device_limits().sm_count;
    dim3 grid = split ? dim3(unsigned(heads), unsigned(kAll)) : dim3(unsigned(std::min(heads, at_once)));
    kernel<<<grid, split ? kGroup : kAll * kGroup, size_t(kBytes<kTokens>), as_stream(stream)>>>(a, heads);
    check_launch("attention_short_fwd", stream);
  });
}

}  // namespace occam::kernels
