#pragma once
#include <cstdint>

#include "core/half.h"

namespace occam::kernels {

/// One row of logits against a target distribution given in one of three ways.
template <class T, class A>
struct SoftTarget {
  const int64_t* labels = nullptr;  // smoothed one-hot
  A smoothing = 0;
  const A* targets = nullptr;  // given
  const T* teacher = nullptr;  // softmax(teacher / temperature)
  A temperature = 1;
};

/// loss[row] and lse[row] = log sum exp(x / temperature); for a teacher also its own lse.
template <class T>
void cross_entropy_fwd(const T* x, SoftTarget<T, float> target, float* loss, float* lse, float* teacher_lse,
                       int64_t rows, int64_t k, void* stream);
/// gx = *gy * scale * (sum(q) softmax - q)
template <class T>
void cross_entropy_bwd(const T* x, SoftTarget<T, float> target, const float* lse, const float* teacher_lse,
                       const float* gy, float scale, T* gx, int64_t rows, int64_t k, void* stream);

}  // namespace occam::kernels
