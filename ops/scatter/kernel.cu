#include "ops/scatter/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

/// A thread owns column [o, :, i] of y between places `first` and `last`, blockIdx.y choosing them, and walks
/// the column's indices in order: nobody else writes there, so no atomics. Neighbouring threads are
/// neighbours in i: they share an index (or read neighbouring ones) and read neighbouring elements of src.
template <class T, bool Each>
__global__ void __launch_bounds__(kThreads)
    scatter_add_kernel(const T* src, const int64_t* indices, float* y, IndexPlan p, int64_t places) {
  int64_t first = int64_t(blockIdx.y) * places, last = first + places;
  OCCAM_GRID_LOOP(column, p.outer * p.inner) {
    int64_t o = column / p.inner, i = column % p.inner;
    float* out = y + o * p.size * p.inner + i;
    const int64_t start = o * p.n * p.inner + i;
    for (int64_t k = 0; k < p.n; ++k) {
      int64_t index = indices[Each ? start + k * p.inner : k];
      bool inside = index >= 0 && index < p.size;
      int64_t place = inside ? index : index < 0 ? 0 : p.size - 1;
      if (place < first || place >= last) continue;
      out[place * p.inner] += inside ? to_acc(src[start + k * p.inner]) : nanf("");
    }
  }
}

}  // namespace

template <class T>
void scatter_add(const T* src, const int64_t* indices, float* y, const IndexPlan& p, void* stream) {
  int64_t columns = p.outer * p.inner;
  if (columns * p.n * p.size == 0) return;
  // Few columns: their places are shared among more threads, each of which reads all indices. The order of
  // the additions at a place is the same for any number of parts.
  int64_t wanted = int64_t(device_limits().sm_count) * 1024 / columns;
  int64_t parts = std::clamp<int64_t>(wanted, 1, std::min<int64_t>(p.size, 65535));
  int64_t places = div_up(p.size, parts);
  dim3 grid(grid_for(columns, kThreads), unsigned(div_up(p.size, places)));
  if (p.each)
    scatter_add_kernel<T, true><<<grid, kThreads, 0, as_stream(stream)>>>(src, indices, y, p, places);
  else
    scatter_add_kernel<T, false><<<grid, kThreads, 0, as_stream(stream)>>>(src, indices, y, p, places);
  check_launch("scatter_add", stream);
}

template void scatter_add(const float*, const int64_t*, float*, const IndexPlan&, void*);
template void scatter_add(const bf16*, const int64_t*, float*, const IndexPlan&, void*);

}  // namespace occam::kernels
