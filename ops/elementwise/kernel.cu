#include "ops/elementwise/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 256;

template <Binary Op>
__device__ __forceinline__ float combine(float a, float b) {
  if constexpr (Op == Binary::add)
    return a + b;
  else if constexpr (Op == Binary::sub)
    return a - b;
  else if constexpr (Op == Binary::mul)
    return a * b;
  else
    return a / b;
}

template <class T, Binary Op>
__global__ void binary_packed(const T* a, const T* b, T* y, int64_t packs) {
  OCCAM_GRID_LOOP(i, packs) {
    float x[kPack<T>], z[kPack<T>];
    load_acc(a + i * kPack<T>, x);
    load_acc(b + i * kPack<T>, z);
#pragma unroll
    for (int k = 0; k < kPack<T>; ++k) x[k] = combine<Op>(x[k], z[k]);
    store_acc(y + i * kPack<T>, x);
  }
}

template <class T, Binary Op>
__global__ void binary_strided(const T* a, const T* b, T* y, BroadcastPlan plan) {
  OCCAM_GRID_LOOP(i, plan.count) {
    int64_t rest = i, at_a = 0, at_b = 0;
    for (int axis = plan.rank - 1; axis >= 0; --axis) {
      int64_t index = rest % plan.shape[axis];
      rest /= plan.shape[axis];
      at_a += index * plan.a[axis];
      at_b += index * plan.b[axis];
    }
    y[i] = from_acc<T>(combine<Op>(to_acc(a[at_a]), to_acc(b[at_b])));
  }
}

template <class T>
__global__ void scale_shift_kernel(const T* x, T* y, int64_t count, float factor, float shift) {
  OCCAM_GRID_LOOP(i, count) y[i] = from_acc<T>(to_acc(x[i]) * factor + shift);
}

template <class T, Binary Op>
void launch(const T* a, const T* b, T* y, const BroadcastPlan& p, void* stream) {
  bool flat = p.rank == 1 && p.a[0] == 1 && p.b[0] == 1 && aligned16(a, b, y) && p.count % kPack<T> == 0;
  if (flat) {
    int64_t packs = p.count / kPack<T>;
    binary_packed<T, Op><<<grid_for(packs, kThreads), kThreads, 0, as_stream(stream)>>>(a, b, y, packs);
  } else {
    binary_strided<T, Op><<<grid_for(p.count, kThreads), kThreads, 0, as_stream(stream)>>>(a, b, y, p);
  }
  check_launch("binary", stream);
}

}  // namespace

template <class T>
void binary(Binary op, const T* a, const T* b, T* y, const BroadcastPlan& plan, void* stream) {
  if (plan.count == 0) return;
  switch (op) {
    case Binary::add:
      return launch<T, Binary::add>(a, b, y, plan, stream);
    case Binary::sub:
      return launch<T, Binary::sub>(a, b, y, plan, stream);
    case Binary::mul:
      return launch<T, Binary::mul>(a, b, y, plan, stream);
    case Binary::div:
      return launch<T, Binary::div>(a, b, y, plan, stream);
  }
}

template <class T>
void scale_shift(const T* x, T* y, int64_t count, float factor, float shift, void* stream) {
  if (count == 0) return;
  scale_shift_kernel<<<grid_for(count, kThreads), kThreads, 0, as_stream(stream)>>>(x, y, count, factor,
                                                                                    shift);
  check_launch("scale_shift", stream);
}

template void binary(Binary, const float*, const float*, float*, const BroadcastPlan&, void*);
template void binary(Binary, const bf16*, const bf16*, bf16*, const BroadcastPlan&, void*);
template void scale_shift(const float*, float*, int64_t, float, float, void*);
template void scale_shift(const bf16*, bf16*, int64_t, float, float, void*);

}  // namespace occam::kernels
