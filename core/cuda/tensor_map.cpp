#include "core/cuda/tensor_map.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <array>
#include <cstring>

#include "core/error.h"

namespace occam::cuda {

namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                            CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/// The driver's function, asked for through the runtime: nothing links libcuda.
Encode encode() noexcept {
  static const Encode function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                         &status) != cudaSuccess) {
      (void)cudaGetLastError();
      return Encode(nullptr);
    }
    return status == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : Encode(nullptr);
  }();
  return function;
}

TensorMap encoded(const bf16* data, const std::array<int64_t, 3>& sizes, int axes, int box_rows,
                  int box_images) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));
  if (encode() == nullptr) fail(ErrorKind::device, "this driver has no cuTensorMapEncodeTiled");
  const cuuint64_t row = cuuint64_t(sizes[0]) * sizeof(bf16);
  const cuuint64_t extents[3] = {cuuint64_t(sizes[0]), cuuint64_t(sizes[1]), cuuint64_t(sizes[2])};
  const cuuint64_t strides[2] = {row, row * cuuint64_t(sizes[1])};  // in bytes, from axis 1 on
  const cuuint32_t box[3] = {64, cuuint32_t(box_rows), cuuint32_t(box_images)}, steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult status =
      encode()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, cuuint32_t(axes), const_cast<bf16*>(data), extents,
               strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               // Single rows: their neighbours may not be wanted before they have left the cache again.
               box_images > 1 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    fail(ErrorKind::device, fmt::format("no tensor map for bf16 [{},{},{}] at {} (status {})", sizes[2],
                                        sizes[1], sizes[0], static_cast<const void*>(data), int(status)));
  TensorMap result;
  std::memcpy(&result, &map, sizeof map);
  return result;
}

}  // namespace

bool tensor_maps_supported() noexcept { return encode() != nullptr; }

TensorMap tensor_map(const bf16* data, int64_t rows, int64_t columns, int box_rows) {
  return encoded(data, {columns, rows, 1}, 2, box_rows, 1);
}

TensorMap tensor_map(const bf16* data, int64_t images, int64_t rows, int64_t columns, int box_rows,
                     int box_images) {
  return encoded(data, {columns, rows, images}, 3, box_rows, box_images);
}

}  // namespace occam::cuda
