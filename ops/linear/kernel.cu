#include "ops/linear/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 256;

/// `W` elements at a time: a pack where rows are whole packs, else one.
template <class T, int W, bool Gelu, bool Keep>
__global__ void bias_gelu_kernel(T* y, const T* bias, T* out, int64_t groups, int64_t columns) {
  OCCAM_GRID_LOOP(i, groups) {
    float v[W], b[W];
    int64_t at = i * W;
    if constexpr (W > 1) {
      load_acc(y + at, v);
      if (bias) load_acc(bias + at % columns, b);
    } else {
      v[0] = to_acc(y[at]);
      if (bias) b[0] = to_acc(bias[at % columns]);
    }
#pragma unroll
    for (int k = 0; k < W; ++k) v[k] = bias ? v[k] + b[k] : v[k];
    if constexpr (Keep) {
      // The sum as it is stored: backward sees the same value as the activation does.
#pragma unroll
      for (int k = 0; k < W; ++k) v[k] = to_acc(from_acc<T>(v[k]));
      if constexpr (W > 1)
        store_acc(y + at, v);
      else
        y[at] = from_acc<T>(v[0]);
    }
    if constexpr (Gelu) {
#pragma unroll
      for (int k = 0; k < W; ++k) v[k] = gelu(v[k]);
    }
    if constexpr (W > 1)
      store_acc(out + at, v);
    else
      out[at] = from_acc<T>(v[0]);
  }
}

template <class T, bool Gelu, bool Keep>
void launch(T* y, const T* bias, T* out, int64_t rows, int64_t columns, void* stream) {
  bool packs = columns % kPack<T> == 0 && aligned16(y, out) && (bias == nullptr || aligned16(bias));
  if (packs) {
    int64_t groups = rows * columns / kPack<T>;
    bias_gelu_kernel<T, kPack<T>, Gelu, Keep>
        <<<grid_for(groups, kThreads), kThreads, 0, as_stream(stream)>>>(y, bias, out, groups, columns);
  } else {
    int64_t groups = rows * columns;
    bias_gelu_kernel<T, 1, Gelu, Keep>
        <<<grid_for(groups, kThreads), kThreads, 0, as_stream(stream)>>>(y, bias, out, groups, columns);
  }
  check_launch("bias_gelu", stream);
}

}  // namespace

template <class T>
void bias_gelu(T* y, const T* bias, T* out, int64_t rows, int64_t columns, bool gelu, bool keep,
               void* stream) {
  if (rows * columns == 0) return;
  if (!gelu) return launch<T, false, false>(y, bias, out, rows, columns, stream);
  if (keep) return launch<T, true, true>(y, bias, out, rows, columns, stream);
  launch<T, true, false>(y, bias, out, rows, columns, stream);
}

template void bias_gelu(float*, const float*, float*, int64_t, int64_t, bool, bool, void*);
template void bias_gelu(bf16*, const bf16*, bf16*, int64_t, int64_t, bool, bool, void*);

}  // namespace occam::kernels
