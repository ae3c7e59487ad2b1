#include "ops/elementwise/kernel.h"

#include <algorithm>

#include "core/cuda/divider.h"
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

/// kWide elements of an operand, or one that stands for all of them.
template <int kWide, class T>
__device__ __forceinline__ void fetch(const T* from, bool one, float (&to)[kWide]) {
  if (!one) return load_acc(from, to);
#pragma unroll
  for (int k = 0; k < kWide; ++k) to[k] = to_acc(*from);
}

/// A plan of fewer than 2^31 threads.
struct Walk {
  BroadcastPlan plan;
  Divider by[8];
};

/// A thread makes kWide elements side by side; the plan counts these as one.
template <int kWide, class T, Binary Op>
__global__ void binary_kernel(const T* a, const T* b, T* y, Walk walk) {
  const BroadcastPlan& plan = walk.plan;
  const bool one_a = plan.a[plan.rank - 1] == 0, one_b = plan.b[plan.rank - 1] == 0;
  OCCAM_GRID_LOOP(i, plan.count) {
    uint32_t rest = uint32_t(i);
    int64_t at_a = 0, at_b = 0;
    for (int axis = plan.rank - 1; axis > 0; --axis) {
      const uint32_t next = walk.by[axis](rest), index = rest - next * uint32_t(plan.shape[axis]);
      at_a += index * plan.a[axis];
      at_b += index * plan.b[axis];
      rest = next;
    }
    at_a += rest * plan.a[0], at_b += rest * plan.b[0];
    float x[kWide], z[kWide];
    fetch(a + at_a, one_a, x);
    fetch(b + at_b, one_b, z);
#pragma unroll
    for (int k = 0; k < kWide; ++k) x[k] = combine<Op>(x[k], z[k]);
    store_acc(y + i * kWide, x);
  }
}

template <int kWide, class T>
__global__ void scale_shift_kernel(const T* x, T* y, int64_t count, float factor, float shift) {
  OCCAM_GRID_LOOP(i, count / kWide) {
    float v[kWide];
    load_acc(x + i * kWide, v);
#pragma unroll
    for (int k = 0; k < kWide; ++k) v[k] = v[k] * factor + shift;
    store_acc(y + i * kWide, v);
  }
}

/// Whether each of an operand's runs along the innermost axis is whole packs, or one element.
template <class T>
bool has_packs(const BroadcastPlan& p, const T* x, const int64_t* strides) {
  const int last = p.rank - 1;
  if (strides[last] == 0) return true;
  const bool outer = std::all_of(strides, strides + last, [](int64_t s) { return s % kPack<T> == 0; });
  return strides[last] == 1 && outer && aligned16(x);
}

template <int kWide, class T, Binary Op>
void launch_wide(const T* a, const T* b, T* y, const BroadcastPlan& p, void* stream) {
  if (p.count >= int64_t(1) << 31) {
    const Halves halves(p);
    launch_wide<kWide, T, Op>(a, b, y, halves.first, stream);
    return launch_wide<kWide, T, Op>(a + halves.a, b + halves.b, y + halves.y * kWide, halves.second, stream);
  }
  Walk walk{p, {}};
  for (int axis = 1; axis < p.rank; ++axis) walk.by[axis] = Divider(p.shape[axis]);
  binary_kernel<kWide, T, Op><<<grid_for(p.count, kThreads), kThreads, 0, as_stream(stream)>>>(a, b, y, walk);
  check_launch("binary", stream);
}

template <class T, Binary Op>
void launch(const T* a, const T* b, T* y, BroadcastPlan p, void* stream) {
  int64_t& n = p.shape[p.rank - 1];
  const bool packs = n % kPack<T> == 0 && aligned16(y) && has_packs(p, a, p.a) && has_packs(p, b, p.b);
  if (!packs) return launch_wide<1, T, Op>(a, b, y, p, stream);
  n /= kPack<T>, p.count /= kPack<T>, p.a[p.rank - 1] *= kPack<T>, p.b[p.rank - 1] *= kPack<T>;
  launch_wide<kPack<T>, T, Op>(a, b, y, p, stream);
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
  const bool packs = count % kPack<T> == 0 && aligned16(x, y);
  auto* kernel = packs ? scale_shift_kernel<kPack<T>, T> : scale_shift_kernel<1, T>;
  kernel<<<grid_for(packs ? count / kPack<T> : count, kThreads), kThreads, 0, as_stream(stream)>>>(
      x, y, count, factor, shift);
  check_launch("scale_shift", stream);
}

template void binary(Binary, const float*, const float*, float*, const BroadcastPlan&, void*);
template void binary(Binary, const bf16*, const bf16*, bf16*, const BroadcastPlan&, void*);
template void scale_shift(const float*, float*, int64_t, float, float, void*);
template void scale_shift(const bf16*, bf16*, int64_t, float, float, void*);

}  // namespace occam::kernels
