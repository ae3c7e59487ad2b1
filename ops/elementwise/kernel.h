#pragma once
#include <cstdint>

namespace occam::kernels {

enum class Binary : uint8_t { add, sub, mul, div };

/// Two broadcast inputs over one output shape; neighbouring axes that both inputs walk alike are merged.
struct BroadcastPlan {
  int rank = 0;
  int64_t count = 0;
  int64_t shape[8] = {};
  int64_t a[8] = {}, b[8] = {};  // strides in elements; 0 along a broadcast axis
};

template <class T>
void binary(Binary op, const T* a, const T* b, T* y, const BroadcastPlan& plan, void* stream);
/// y = x * factor + shift
template <class T>
void scale_shift(const T* x, T* y, int64_t count, float factor, float shift, void* stream);

}  // namespace occam::kernels
