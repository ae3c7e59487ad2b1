#include "ops/gather/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 256;

/// `W` neighbouring elements of the inner axis at a time: a pack, or one. Each places one index for all of
/// them, so only W = 1 reads an index for each element.
template <class T, int W, bool Each>
__global__ void gather_kernel(const T* x, const int64_t* indices, T* y, IndexPlan p) {
  int64_t groups = p.inner / W;
  OCCAM_GRID_LOOP(g, p.outer * p.n * groups) {
    int64_t row = g / groups, i = g % groups * W, o = row / p.n;
    int64_t index = indices[Each ? g : row % p.n];
    bool inside = index >= 0 && index < p.size;
    const T* from = x + (o * p.size + index) * p.inner + i;
    T* to = y + row * p.inner + i;
    if constexpr (W > 1) {
      Pack<T> pack;
      if (inside) {
        pack = load_pack(from);
      } else {
#pragma unroll
        for (int k = 0; k < W; ++k) pack.v[k] = from_acc<T>(nanf(""));
      }
      store_pack(to, pack);
    } else {
      *to = inside ? *from : from_acc<T>(nanf(""));
    }
  }
}

template <class T, int W, bool Each>
void launch(const T* x, const int64_t* indices, T* y, const IndexPlan& p, void* stream) {
  gather_kernel<T, W, Each>
      <<<grid_for(p.outer * p.n * p.inner / W, kThreads), kThreads, 0, as_stream(stream)>>>(x, indices, y, p);
  check_launch("gather", stream);
}

}  // namespace

template <class T>
void gather(const T* x, const int64_t* indices, T* y, const IndexPlan& p, void* stream) {
  if (p.outer * p.n * p.inner == 0) return;
  if (p.each) return launch<T, 1, true>(x, indices, y, p, stream);
  if (p.inner % kPack<T> == 0 && aligned16(x, y)) return launch<T, kPack<T>, false>(x, indices, y, p, stream);
  launch<T, 1, false>(x, indices, y, p, stream);
}

template void gather(const float*, const int64_t*, float*, const IndexPlan&, void*);
template void gather(const bf16*, const int64_t*, bf16*, const IndexPlan&, void*);

}  // namespace occam::kernels
