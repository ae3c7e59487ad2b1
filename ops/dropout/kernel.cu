#include "ops/dropout/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/philox.h"

namespace occam::kernels {

using namespace cuda;

namespace {
constexpr int kThreads = 256;

template <class T>
__global__ void dropout_kernel(const T* x, T* y, int64_t count, int64_t group, uint64_t key,
                               const int64_t* step, float p) {
  float scale = 1 / (1 - p);
  auto now = uint64_t(*step);
  OCCAM_GRID_LOOP(i, count) {
    bool kept = philox_uniform(key, now, uint64_t(i / group)) >= p;
    y[i] = from_acc<T>(kept ? to_acc(x[i]) * scale : 0.0f);
  }
}
}  // namespace

template <class T>
void dropout(const T* x, T* y, int64_t count, int64_t group, uint64_t key, const int64_t* step, float p,
             void* stream) {
  if (count == 0) return;
  dropout_kernel<<<grid_for(count, kThreads), kThreads, 0, as_stream(stream)>>>(x, y, count, group, key, step,
                                                                                p);
  check_launch("dropout", stream);
}

template void dropout(const float*, float*, int64_t, int64_t, uint64_t, const int64_t*, float, void*);
template void dropout(const bf16*, bf16*, int64_t, int64_t, uint64_t, const int64_t*, float, void*);

}  // namespace occam::kernels
