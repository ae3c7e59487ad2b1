#pragma once
#include "core/device.h"

namespace occam {

/// Work queue of a device. `handle` is a cudaStream_t on CUDA and null on the CPU.
struct Stream {
  Device device;
  void* handle = nullptr;
  bool operator==(const Stream&) const = default;
};

enum class StreamRole : uint8_t { compute, copy, comm };

/// This thread's current stream of the device (the compute stream unless a StreamGuard says otherwise).
Stream current_stream(Device device);
Stream stream_of(Device device, StreamRole role);

class StreamGuard {
 public:
  explicit StreamGuard(Stream stream);
  ~StreamGuard();
  StreamGuard(const StreamGuard&) = delete;
  StreamGuard& operator=(const StreamGuard&) = delete;

 private:
  Stream previous_;
};

/// Makes `waiter` wait for all work queued so far on `on`; does not block the host.
void stream_wait(Stream waiter, Stream on);

}  // namespace occam
