#pragma once
// Tokens of one head to shared memory by the copy engine (TMA): one instruction for a tile, with zeros for
// tokens that an image does not have.
#include <cuda.h>

#include "core/cuda/check.h"
#include "core/half.h"

namespace occam::kernels {

/// A view of [b][t][columns] that is copied in boxes of `box` tokens (at most 256) and 64 columns, swizzled
/// by 128 bytes. For kernel parameters (__grid_constant__). The pointer and the rows are multiples of 16
/// bytes.
inline CUtensorMap token_map(const bf16* data, int64_t b, int64_t t, int64_t columns, int box) {
  static const auto encode = [] {
    void* found = nullptr;  // through the runtime: nothing links libcuda
    cudaDriverEntryPointQueryResult status;
    OCCAM_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                      cudaEnableDefault, &status));
    if (status != cudaDriverEntryPointSuccess)
      cuda::throw_cuda_error(cudaErrorNotSupported, "cuTensorMapEncodeTiled", __FILE__, __LINE__);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  const cuuint64_t sizes[3] = {cuuint64_t(columns), cuuint64_t(t), cuuint64_t(b)};
  const cuuint64_t strides[2] = {cuuint64_t(columns) * 2,
                                 cuuint64_t(columns * t) * 2};  // in bytes, from axis 1 on
  const cuuint32_t shape[3] = {64, cuuint32_t(box), 1}, steps[3] = {1, 1, 1};
  CUtensorMap map;
  CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<bf16*>(data), sizes, strides,
                           shape, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    cuda::throw_cuda_error(cudaErrorInvalidValue, "cuTensorMapEncodeTiled", __FILE__, __LINE__);
  return map;
}

}  // namespace occam::kernels
