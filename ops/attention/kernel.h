#pragma once
#include <cstdint>

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

template <class T>
void attention_fwd(const Attention<T>& a, void* stream);
template <class T>
void attention_bwd(const Attention<T>& a, void* stream);

}  // namespace occam::kernels
