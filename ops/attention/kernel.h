#pragma once
#include <cstdint>

#include "core/half.h"

namespace occam::kernels {

/// Sizes and pointers of one call. qkv and gqkv are [b,t,3,h,d]; y and gy [b,t,h,d]; lse and delta [b,h,t];
/// key_mask [b,t] or null.
template <class T>
struct Attention {
  int64_t b = 0, t = 0, h = 0, d = 0;
  float scale = 1;
  const T* qkv = nullptr;
  const uint8_t* key_mask = nullptr;
  T* y = nullptr;
  float* lse = nullptr;
  // backward only
  const T* gy = nullptr;
  float* delta = nullptr;  // scratch
  T* gqkv = nullptr;
};

/// What the kernels can do: heads of at most kAttentionLargestHead, and at most 2^31 - 1 blocks, the smallest
/// of which has kAttentionLeastRows rows of one head.
inline constexpr int64_t kAttentionLargestHead = 256, kAttentionLeastRows = 16;

template <class T>
void attention_fwd(const Attention<T>& a, void* stream);
template <class T>
void attention_bwd(const Attention<T>& a, void* stream);

/// The same on tensor cores, for d <= kAttentionLargestMma; backward needs `delta` filled. Called by the
/// above.
inline constexpr int64_t kAttentionLargestMma = 128;
void attention_fwd_mma(const Attention<bf16>& a, void* stream);
void attention_bwd_mma(const Attention<bf16>& a, void* stream);

/// The same for d = 64 by warpgroups of a Hopper GPU: short for rows of at most kAttentionShort tokens
/// (backward needs no `delta`), long for any. `fits`: this GPU, build, d and addresses (multiples of 16)
/// allow it.
inline constexpr int64_t kAttentionShort = 208;
bool attention_fits_warpgroups(const Attention<bf16>& a);
void attention_fwd_short(const Attention<bf16>& a, void* stream);
void attention_bwd_short(const Attention<bf16>& a, void* stream);
void attention_fwd_long(const Attention<bf16>& a, void* stream);
void attention_bwd_long(const Attention<bf16>& a, void* stream);

}  // namespace occam::kernels
