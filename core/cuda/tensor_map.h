#pragma once
// What the copy engine of Hopper (TMA) knows of a matrix: made on the host, passed to a kernel as a
// __grid_constant__ parameter. No CUDA header.
#include <cstdint>

#include "core/half.h"

namespace occam::cuda {

/// An opaque CUtensorMap.
struct alignas(128) TensorMap {
  uint64_t words[16];
};

/// A packed bf16 matrix that is copied in boxes of `box_rows` rows (at most 256) and 64 columns, swizzled by
/// 128 bytes in shared memory. The pointer and the rows are multiples of 16 bytes. Needs no context switch
/// and no allocation: fine while a stream is captured.
TensorMap tensor_map(const bf16* data, int64_t rows, int64_t columns, int box_rows);

/// The same for a view of [images][rows][columns]: rows that an image does not have are read as 0 and not
/// written. A box has `box_rows` rows of `box_images` images (1 row if more than 1 image).
TensorMap tensor_map(const bf16* data, int64_t images, int64_t rows, int64_t columns, int box_rows,
                     int box_images = 1);

/// Whether the driver can make one.
bool tensor_maps_supported() noexcept;

}  // namespace occam::cuda
