#include "core/cuda/memory.h"

#include <fmt/format.h>

#include <map>
#include <vector>

#include "core/cuda/backend.h"
#include "core/cuda/check.h"

namespace occam::cuda {

namespace {

struct Mark {
  cudaEvent_t event = nullptr;
  int device = 0;
};

/// Marks by events, which are kept for reuse. Called under the allocator's lock only.
class CudaMemory : public SystemMemory {
 public:
  void* mark(void* stream) noexcept override try {
    AllowInCapture allow;
    const int device = device_of(stream);
    DeviceGuard guard(device);
    std::vector<cudaEvent_t>& spare = spare_[device];
    cudaEvent_t event = nullptr;
    if (!spare.empty()) {
      event = spare.back();
      spare.pop_back();
    } else {
      OCCAM_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    }
    OCCAM_CUDA_CHECK(cudaEventRecord(event, as_stream(stream)));
    return new Mark{event, device};
  } catch (const std::exception&) {
    return nullptr;  // the runtime is shutting down, or the device is lost: nothing runs any more
  }

  bool passed(void* mark) override {
    AllowInCapture allow;
    const cudaError_t status = cudaEventQuery(static_cast<Mark*>(mark)->event);
    if (status == cudaErrorNotReady) {
      cudaGetLastError();
      return false;
    }
    OCCAM_CUDA_CHECK(status);
    return true;
  }

  void wait(void* mark) override {
    AllowInCapture allow;
    OCCAM_CUDA_CHECK(cudaEventSynchronize(static_cast<Mark*>(mark)->event));
  }

  void drop(void* mark) noexcept override {
    auto* m = static_cast<Mark*>(mark);
    spare_[m->device].push_back(m->event);
    delete m;
  }

  bool is_capturing(void* stream) noexcept override { return cuda::is_capturing(stream); }

 private:
  std::map<int, std::vector<cudaEvent_t>> spare_;
};

class DeviceMemory final : public CudaMemory {
 public:
  explicit DeviceMemory(int device) : device_(device) {}
  std::string name() const override { return fmt::format("cuda:{}", device_); }

  void* reserve(size_t bytes) noexcept override try {
    AllowInCapture allow;
    DeviceGuard guard(device_);
    void* pointer = nullptr;
    if (cudaMalloc(&pointer, bytes) == cudaSuccess) return pointer;
    cudaGetLastError();
    return nullptr;
  } catch (const std::exception&) {
    return nullptr;
  }

  void release(void* pointer) noexcept override try {
    DeviceGuard guard(device_);
    report_cuda_error(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    report_cuda_error(cudaFree(pointer), "cudaFree");
  } catch (const std::exception&) {
    return;  // no device to give it back to
  }

  Room room() noexcept override try {
    DeviceGuard guard(device_);
    size_t free = 0;
    size_t total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
    return {int64_t(free), int64_t(total)};
  } catch (const std::exception&) {
    return {};
  }

 private:
  int device_;
};

class PinnedMemory final : public CudaMemory {
 public:
  std::string name() const override { return "page-locked host memory"; }
  void* reserve(size_t bytes) noexcept override {
    AllowInCapture allow;
    void* pointer = nullptr;
    if (cudaHostAlloc(&pointer, bytes, cudaHostAllocPortable) == cudaSuccess) return pointer;
    cudaGetLastError();
    return nullptr;
  }
  void release(void* pointer) noexcept override { report_cuda_error(cudaFreeHost(pointer), "cudaFreeHost"); }
  Room room() noexcept override { return {}; }
};

std::vector<CachingAllocator*>& device_caches() {
  // Never destroyed: tensors of static lifetime are freed after static destructors would have run.
  static auto* caches = [] {
    auto* all = new std::vector<CachingAllocator*>;
    for (int device = 0; device < device_count(); ++device)
      all->push_back(new CachingAllocator(std::make_unique<DeviceMemory>(device)));
    return all;
  }();
  return *caches;
}

}  // namespace

CachingAllocator& device_cache(int device) { return *device_caches().at(size_t(device)); }

CachingAllocator& pinned_cache() {
  static auto* cache = new CachingAllocator(std::make_unique<PinnedMemory>());
  return *cache;
}

Allocator& caching_allocator(int device) { return device_cache(device); }
Allocator& pinned_allocator() { return pinned_cache(); }

int64_t free_bytes(int device) {
  DeviceGuard guard(device);
  size_t free = 0;
  size_t total = 0;
  OCCAM_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return int64_t(free);
}

void record_use(const void* pointer, void* stream) {
  for (CachingAllocator* cache : device_caches())
    if (cache->record_use(pointer, stream)) return;
  pinned_cache().record_use(pointer, stream);
}

}  // namespace occam::cuda
