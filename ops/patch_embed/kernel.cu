#include "ops/patch_embed/kernel.h"

#include "core/cuda/launch.h"

namespace occam::kernels {

using namespace cuda;

namespace {
constexpr int kThreads = 256;

/// A thread moves a Unit of pixels that are neighbours in a row of a patch.
template <class Unit, class T, class Index, bool Back>
__global__ void patch_copy(const T* from, T* to, PatchGrid grid) {
  constexpr int kEach = int(sizeof(Unit) / sizeof(T));
  OCCAM_GRID_LOOP(unit, grid.count() / kEach) {
    const int64_t i = unit * kEach, pixel = grid.pixel(Index(i));
    *reinterpret_cast<Unit*>(to + (Back ? pixel : i)) =
        *reinterpret_cast<const Unit*>(from + (Back ? i : pixel));
  }
}

template <class Unit, class T, bool Back>
void launch_units(const T* from, T* to, const PatchGrid& grid, void* stream) {
  const int64_t units = grid.count() * int64_t(sizeof(T)) / int64_t(sizeof(Unit));
  auto* kernel = grid.count() < (int64_t(1) << 31) ? patch_copy<Unit, T, uint32_t, Back>
                                                   : patch_copy<Unit, T, int64_t, Back>;
  kernel<<<grid_for(units, kThreads), kThreads, 0, as_stream(stream)>>>(from, to, grid);
  check_launch("patch_copy", stream);
}

template <class T, bool Back>
void launch(const T* from, T* to, const PatchGrid& grid, void* stream) {
  if (grid.count() == 0) return;
  const int64_t line = grid.p * int64_t(sizeof(T));  // bytes of a patch's row of pixels
  if (aligned16(from, to) && line % 16 == 0) return launch_units<uint4, T, Back>(from, to, grid, stream);
  if (aligned16(from, to) && line % 8 == 0) return launch_units<uint2, T, Back>(from, to, grid, stream);
  launch_units<T, T, Back>(from, to, grid, stream);
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
