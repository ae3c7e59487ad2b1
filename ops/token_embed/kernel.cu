#include "ops/token_embed/kernel.h"

#include "core/cuda/chain.h"
#include "core/cuda/cluster.cuh"
#include "core/cuda/launch.h"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

/// Grid (packs of an image, images). kPacked: in packs of 16 bytes; `c` counts packs then.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads)
    token_embed_fwd(const T* x, const T* prefix, const T* places, T* y, int64_t b, int64_t p, int64_t n,
                    int64_t c) {
  constexpr int kUnit = kPacked ? kPack<T> : 1;
  grid_release_next();
  grid_wait();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, head = p * c, each = head + n * c;
  if (i >= each) return;
  for (int64_t image = blockIdx.y; image < b; image += gridDim.y) {
    const T* from = i < head ? prefix + i * kUnit : x + (image * n * c + i - head) * kUnit;
    T* to = y + (image * each + i) * kUnit;
    if constexpr (kPacked) {
      float v[kUnit], place[kUnit];
      load_acc(from, v);
      load_acc(places + i * kUnit, place);
#pragma unroll
      for (int e = 0; e < kUnit; ++e) v[e] += place[e];
      store_acc(to, v);
    } else {
      *to = from_acc<T>(to_acc(*from) + to_acc(places[i]));
    }
  }
}

template <class T, bool kPacked>
void launch(const T* x, const T* prefix, const T* places, T* y, int64_t b, int64_t p, int64_t n, int64_t c,
            void* stream) {
  const int64_t bytes = b * (p + n) * c * int64_t(sizeof(T)), units = kPacked ? c / kPack<T> : c;
  const dim3 grid(grid_of_blocks(div_up<int64_t>((p + n) * units, kThreads)),
                  unsigned(b < 65535 ? b : 65535));
  launch_chained(token_embed_fwd<T, kPacked>, "token_embed_fwd", {grid, kThreads}, {{}, {{y, bytes}}}, stream,
                 x, prefix, places, y, b, p, n, units);
}

}  // namespace

template <class T>
void token_embed(const T* x, const T* prefix, const T* places, T* y, int64_t b, int64_t p, int64_t n,
                 int64_t c, void* stream) {
  if (b * (p + n) * c == 0) return;
  if (c % kPack<T> == 0 && aligned16(x, prefix, places, y))
    return launch<T, true>(x, prefix, places, y, b, p, n, c, stream);
  launch<T, false>(x, prefix, places, y, b, p, n, c, stream);
}

template void token_embed(const float*, const float*, const float*, float*, int64_t, int64_t, int64_t,
                          int64_t, void*);
template void token_embed(const bf16*, const bf16*, const bf16*, bf16*, int64_t, int64_t, int64_t, int64_t,
                          void*);

}  // namespace occam::kernels
