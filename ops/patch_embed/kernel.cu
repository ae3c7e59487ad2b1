#include "ops/patch_embed/kernel.h"

#include "core/cuda/launch.h"

namespace occam::kernels {

using namespace cuda;

namespace {
constexpr int kThreads = 256;

template <class T, bool Back>
__global__ void patch_copy(const T* from, T* to, PatchGrid grid) {
  OCCAM_GRID_LOOP(i, grid.count()) {
    if constexpr (Back)
      to[grid.pixel(i)] = from[i];
    else
      to[i] = from[grid.pixel(i)];
  }
}

template <class T, bool Back>
void launch(const T* from, T* to, PatchGrid grid, void* stream) {
  if (grid.count() == 0) return;
  patch_copy<T, Back><<<grid_for(grid.count(), kThreads), kThreads, 0, as_stream(stream)>>>(from, to, grid);
  check_launch("patch_copy", stream);
}
}  // namespace

template <class T>
void patches_from_image(const T* image, T* patches, PatchGrid grid, void* stream) {
  launch<T, false>(image, patches, grid, stream);
}
template <class T>
void image_from_patches(const T* patches, T* image, PatchGrid grid, void* stream) {
  launch<T, true>(patches, image, grid, stream);
}

template void patches_from_image(const float*, float*, PatchGrid, void*);
template void patches_from_image(const bf16*, bf16*, PatchGrid, void*);
template void image_from_patches(const float*, float*, PatchGrid, void*);
template void image_from_patches(const bf16*, bf16*, PatchGrid, void*);

}  // namespace occam::kernels
