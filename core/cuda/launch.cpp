#include "core/cuda/launch.h"

#include <fmt/format.h>

#include <vector>

#include "core/cuda/backend.h"
#include "core/error.h"

namespace occam::cuda {

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  OCCAM_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

DeviceLimits read_limits(int device) {
  DeviceLimits limits;
  limits.sm_count = attribute(cudaDevAttrMultiProcessorCount, device);
  limits.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                      attribute(cudaDevAttrComputeCapabilityMinor, device);
  limits.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlock, device);
  limits.shared_bytes_opt_in = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  limits.threads_per_sm = attribute(cudaDevAttrMaxThreadsPerMultiProcessor, device);
  limits.l2_bytes = attribute(cudaDevAttrL2CacheSize, device);
  return limits;
}

}  // namespace

const DeviceLimits& device_limits() {
  static const std::vector<DeviceLimits> limits = [] {
    std::vector<DeviceLimits> all;
    for (int device = 0; device < device_count(); ++device) all.push_back(read_limits(device));
    return all;
  }();
  int device = 0;
  OCCAM_CUDA_CHECK(cudaGetDevice(&device));
  return limits.at(size_t(device));
}

unsigned grid_of_blocks(int64_t blocks) {
  if (blocks > kMaxGridX)
    fail(ErrorKind::shape,
         fmt::format("{} blocks for one kernel: a GPU takes {}; use a smaller batch", blocks, kMaxGridX));
  return unsigned(blocks);
}

void allow_shared_memory(const void* kernel, const char* name, int64_t bytes) {
  const DeviceLimits& limits = device_limits();
  if (bytes > limits.shared_bytes_opt_in)
    fail(ErrorKind::device, fmt::format("kernel {} needs {} bytes of shared memory a block; this GPU has {}",
                                        name, bytes, limits.shared_bytes_opt_in));
  OCCAM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
}

}  // namespace occam::cuda
