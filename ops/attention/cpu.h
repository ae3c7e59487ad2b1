#pragma once
#include <cstdint>

namespace occam {

/// One call's sizes and pointers on the CPU; layouts as in kernel.h.
template <class T>
struct AttentionCpu {
  int64_t b = 0, t = 0, h = 0, d = 0;
  double scale = 1;
  const T* qkv = nullptr;
  const uint8_t* key_mask = nullptr;  // null: every key
  T* y = nullptr;
  T* lse = nullptr;
  const T* gy = nullptr;
  T* gqkv = nullptr;
};

template <class T>
void attention_forward_cpu(const AttentionCpu<T>& a);
template <class T>
void attention_backward_cpu(const AttentionCpu<T>& a);

/// The same by vectors of 64 bytes (`ops/wide_product.h`), to which the functions above go on for f32 where
/// the processor has them. Both are there since the plain one serves f64 and every other processor by whole
/// products of matrix_product, and this one packs keys and values once a head and pads rows of scores to
/// whole vectors, so that nothing of a tile, the softmax neither, has a rest apart.
void attention_forward_wide(const AttentionCpu<float>& a);
void attention_backward_wide(const AttentionCpu<float>& a);

}  // namespace occam
