#include "data/render/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 256;
constexpr int64_t kRunsPerThread = 4;  // where one image has more work than a block

/// A block works on one pair of images; a thread on V neighbouring pixels of both in all channels.
template <class T, int C, int V, bool kResample>
__global__ void __launch_bounds__(kThreads, kResample ? 2 : 4) render_pairs(RenderArgs a, T* images) {
  __shared__ float levels[C * 256];
  for (int i = int(threadIdx.x); i < C * 256; i += kThreads) levels[i] = a.levels[i];
  __syncthreads();
  // Transform's limit of sizes keeps a plane within 2^28 pixels.
  const uint32_t runs_per_row = uint32_t(a.size + V - 1) / V, runs = runs_per_row * uint32_t(a.size);
  for (int64_t i = blockIdx.x; i < (a.count + 1) / 2; i += gridDim.x) {
    for (uint32_t run = blockIdx.y * kThreads + threadIdx.x; run < runs; run += gridDim.y * kThreads) {
      const uint32_t y = run / runs_per_row, x = (run - y * runs_per_row) * V;
      render_run<C, V, kResample>(a, levels, i, int32_t(x), int32_t(y), images);
    }
    if (blockIdx.y != 0) continue;
    const int64_t j = a.count - 1 - i;
    const int64_t label = a.images[i].label, partner = a.images[j].label;
    if (threadIdx.x == 0) {
      a.labels[i] = label;
      a.labels[j] = partner;
    }
    if (a.targets == nullptr) continue;
    for (int64_t k = threadIdx.x; k < a.classes; k += kThreads) {
      a.targets[i * a.classes + k] = target_value(a, k, label, partner);
      a.targets[j * a.classes + k] = target_value(a, k, partner, label);
    }
  }
}

template <class T, int C, int V, bool kResample>
void launch(const RenderArgs& a, T* images, void* stream) {
  const int64_t runs = int64_t(a.size) * div_up<int64_t>(a.size, V);
  const dim3 grid(grid_of_rows((a.count + 1) / 2),
                  unsigned(std::clamp<int64_t>(runs / (kThreads * kRunsPerThread), 1, 65535)));
  render_pairs<T, C, V, kResample><<<grid, kThreads, 0, as_stream(stream)>>>(a, images);
  check_launch("render_pairs", stream);
}

template <class T, int C>
void launch_channels(const RenderArgs& a, T* images, void* stream) {
  if (a.taps > 0)
    launch<T, C, 1, true>(a, images, stream);
  else if (a.size % 4 == 0 && aligned16(images))
    launch<T, C, 4, false>(a, images, stream);
  else
    launch<T, C, 1, false>(a, images, stream);
}

__global__ void keep_rows(const ImagePlan* images, int64_t count, const uint4* fresh, uint4* store,
                          int64_t packs) {
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    const ImagePlan& p = images[i];
    if (p.fresh < 0) continue;
    for (int64_t k = threadIdx.x; k < packs; k += blockDim.x)
      store[p.index * packs + k] = fresh[p.fresh * packs + k];
  }
}

}  // namespace

template <class T>
void render(const RenderArgs& a, T* images, void* stream) {
  if (a.count == 0) return;
  a.channels == 3 ? launch_channels<T, 3>(a, images, stream) : launch_channels<T, 1>(a, images, stream);
}

template void render(const RenderArgs&, float*, void*);
template void render(const RenderArgs&, bf16*, void*);

void keep_fresh(const ImagePlan* images, int64_t count, const uint8_t* fresh, uint8_t* store,
                int64_t row_bytes, void* stream) {
  if (count == 0) return;
  keep_rows<<<grid_of_rows(count), kThreads, 0, as_stream(stream)>>>(
      images, count, reinterpret_cast<const uint4*>(fresh), reinterpret_cast<uint4*>(store), row_bytes / 16);
  check_launch("keep_rows", stream);
}

}  // namespace occam::kernels
