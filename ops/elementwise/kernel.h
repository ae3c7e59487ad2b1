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

/// A plan cut in two along its first axis of more than one element, and where the second part begins.
struct Halves {
  BroadcastPlan first, second;
  int64_t a = 0, b = 0, y = 0;

  explicit Halves(const BroadcastPlan& p) : first(p), second(p) {
    int axis = 0;
    while (p.shape[axis] == 1) ++axis;
    first.shape[axis] /= 2, second.shape[axis] -= first.shape[axis];
    const int64_t rest = p.count / p.shape[axis];
    first.count = y = rest * first.shape[axis], second.count = rest * second.shape[axis];
    a = p.a[axis] * first.shape[axis], b = p.b[axis] * first.shape[axis];
  }
};

template <class T>
void binary(Binary op, const T* a, const T* b, T* y, const BroadcastPlan& plan, void* stream);
/// y = x * factor + shift
template <class T>
void scale_shift(const T* x, T* y, int64_t count, float factor, float shift, void* stream);

}  // namespace occam::kernels
