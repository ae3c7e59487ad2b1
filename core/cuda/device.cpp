#include <nvtx3/nvToolsExt.h>

#include <array>
#include <mutex>
#include <string>
#include <vector>

#include "core/cuda/backend.h"
#include "core/cuda/check.h"
#include "core/cuda/memory.h"

namespace occam::cuda {

namespace {

constexpr int kRoles = 3;

struct DeviceStreams {
  std::mutex mutex;
  std::array<cudaStream_t, kRoles> by_role{};
};

std::vector<DeviceStreams>& all_streams() {
  // Never destroyed: the runtime may be gone before static destructors run.
  static auto* streams = new std::vector<DeviceStreams>(size_t(device_count()));
  return *streams;
}

}  // namespace

int device_count() noexcept {
  static const int count = [] {
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
    cudaGetLastError();  // no driver or no GPU is an answer, not an error
    return 0;
  }();
  return count;
}

std::string device_name(int device) {
  cudaDeviceProp properties{};
  OCCAM_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

void synchronize(int device) {
  DeviceGuard guard(device);
  OCCAM_CUDA_CHECK(cudaDeviceSynchronize());
}

void* stream(int device, StreamRole role) {
  DeviceStreams& streams = all_streams().at(size_t(device));
  // Launches need the stream's device to be current. A thread asks for its stream here before it launches
  // anything.
  int current = 0;
  OCCAM_CUDA_CHECK(cudaGetDevice(&current));
  if (current != device) OCCAM_CUDA_CHECK(cudaSetDevice(device));
  std::lock_guard lock(streams.mutex);
  cudaStream_t& slot = streams.by_role[size_t(role)];
  if (slot == nullptr) OCCAM_CUDA_CHECK(cudaStreamCreateWithFlags(&slot, cudaStreamNonBlocking));
  return slot;
}

int device_of(void* stream) {
  auto& all = all_streams();
  for (size_t device = 0; device < all.size(); ++device) {
    std::lock_guard lock(all[device].mutex);
    for (cudaStream_t s : all[device].by_role)
      if (s == as_stream(stream) && s != nullptr) return int(device);
  }
  int current = 0;
  OCCAM_CUDA_CHECK(cudaGetDevice(&current));
  return current;
}

void synchronize_stream(void* stream) { OCCAM_CUDA_CHECK(cudaStreamSynchronize(as_stream(stream))); }

void stream_wait(void* waiter, void* on) {
  if (waiter == on) return;
  DeviceGuard guard(device_of(on));  // an event belongs to the device of the stream it is recorded on
  cudaEvent_t event = nullptr;
  OCCAM_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  cudaError_t status = cudaEventRecord(event, as_stream(on));
  if (status == cudaSuccess) status = cudaStreamWaitEvent(as_stream(waiter), event, 0);
  note_work();
  report_cuda_error(cudaEventDestroy(event), "cudaEventDestroy");  // the wait keeps what it needs
  OCCAM_CUDA_CHECK(status);
}

void memcpy_async(void* to, const void* from, size_t bytes, void* stream) {
  if (bytes == 0) return;
  OCCAM_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, as_stream(stream)));
  note_work();
  // Both sides must outlive the copy, wherever their owners free them.
  record_use(to, stream);
  record_use(from, stream);
}

void memcpy_now(void* to, const void* from, size_t bytes, int device) {
  if (bytes == 0) return;
  AllowInCapture allow;
  auto* copies = as_stream(stream(device, StreamRole::copy));
  OCCAM_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, copies));
  note_work();
  OCCAM_CUDA_CHECK(cudaStreamSynchronize(copies));
}

bool is_capturing(void* stream) noexcept {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (stream == nullptr || cudaStreamIsCapturing(as_stream(stream), &status) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return status != cudaStreamCaptureStatusNone;
}

void memset_async(void* to, int byte, size_t bytes, void* stream) {
  if (bytes == 0) return;
  OCCAM_CUDA_CHECK(cudaMemsetAsync(to, byte, bytes, as_stream(stream)));
  note_work();
}

void range_push(const char* name) noexcept { nvtxRangePushA(name); }
void range_pop() noexcept { nvtxRangePop(); }

}  // namespace occam::cuda
