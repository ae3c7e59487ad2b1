#include "core/device.h"

#include <array>
#include <map>

#include "core/check.h"
#include "core/grad_mode.h"
#include "core/stream.h"
#if OCCAM_CUDA
#include "core/cuda/backend.h"
#endif

namespace occam {

std::string Device::str() const { return is_cpu() ? "cpu" : "cuda:" + std::to_string(index); }

int cuda_device_count() {
#if OCCAM_CUDA
  return cuda::device_count();
#else
  return 0;
#endif
}

std::string device_name() {
#if OCCAM_CUDA
  if (cuda::device_count() > 0) return cuda::device_name(0);
#endif
  return "cpu";
}

bool cuda_available() { return cuda_device_count() > 0; }

void synchronize(Device device) {
#if OCCAM_CUDA
  if (device.is_cuda()) cuda::synchronize(device.index);
#endif
}

Stream stream_of(Device device, StreamRole role) {
  if (device.is_cpu()) return {device, nullptr};
#if OCCAM_CUDA
  return {device, cuda::stream(device.index, role)};
#else
  fail(ErrorKind::device, "this build has no CUDA; configure with -DOCCAM_CUDA=ON");
#endif
}

namespace {
constexpr int kMaxDevices = 16;
Stream* current_slot(Device device) {
  thread_local std::array<Stream, kMaxDevices> current{};
  return &current.at(size_t(device.index));
}
}  // namespace

Stream current_stream(Device device) {
  if (device.is_cpu()) return {device, nullptr};
  Stream* slot = current_slot(device);
  if (slot->handle == nullptr) *slot = stream_of(device, StreamRole::compute);
  return *slot;
}

StreamGuard::StreamGuard(Stream stream) : previous_(current_stream(stream.device)) {
  if (stream.device.is_cuda()) *current_slot(stream.device) = stream;
}

StreamGuard::~StreamGuard() {
  if (previous_.device.is_cuda()) *current_slot(previous_.device) = previous_;
}

void stream_wait(Stream waiter, Stream on) {
#if OCCAM_CUDA
  if (waiter.device.is_cuda() && on.device.is_cuda()) cuda::stream_wait(waiter.handle, on.handle);
#endif
}

namespace {
thread_local bool grad_enabled_flag = true;
}
bool grad_enabled() { return grad_enabled_flag; }
void set_grad_enabled(bool enabled) { grad_enabled_flag = enabled; }

}  // namespace occam
