#pragma once
// Launches of kernels that begin while the kernel ahead of them in the stream still runs ("programmatic
// dependent launch", CUDA C++ Programming Guide). What they do before grid_wait() (cluster.cuh) overlaps with
// it.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "core/cuda/check.h"

namespace occam::cuda {

struct LaunchShape {
  dim3 grid;
  unsigned threads = 0;
  int64_t shared_bytes = 0;
  unsigned cluster = 1;  // neighbours along x
};

struct Memory {
  const void* begin = nullptr;
  int64_t bytes = 0;
};
/// What a kernel reads before its grid_wait(), and what it writes.
struct ChainMemory {
  std::initializer_list<Memory> early, written;
};

/// A chain are kernels of launch_chained() that follow one another in `stream` with nothing between them. Its
/// kernels may all run at the same time up to their grid_wait(), so one that reads early what one of them
/// writes has to begin a new chain. Says whether the next kernel can join the newest chain.
bool joins_chain(void* stream, const ChainMemory& memory);
/// Tells that it was launched.
void extend_chain(void* stream, const ChainMemory& memory, bool joined);

/// Launches a kernel all of whose threads that touch memory call grid_wait() before they read anything but
/// memory.early and before they write, and that calls grid_release_next().
template <class... Params>
void launch_chained(void (*kernel)(Params...), const char* name, const LaunchShape& shape,
                    const ChainMemory& memory, void* stream, std::type_identity_t<Params>... args) {
  const bool joins = joins_chain(stream, memory);
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {shape.cluster, 1, 1};
  }
  if (joins) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = size_t(shape.shared_bytes);
  config.stream = as_stream(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  void* pointers[] = {&args..., nullptr};
  OCCAM_CUDA_CHECK(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers));
  check_launch(name, stream);
  extend_chain(stream, memory, joins);
}

}  // namespace occam::cuda
