#pragma once
// A piece of work of fixed shapes that is repeated: on a GPU recorded once into a CUDA graph and replayed
// with one launch, elsewhere simply run.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/device.h"

namespace occam {

namespace cuda {
class Graph;
}

class Replay {
 public:
  explicit Replay(Device device);
  ~Replay();
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  /// Runs `work` eagerly for the first kEagerRuns times (kernels are loaded, algorithms chosen), then records
  /// it and replays. `work` reads and writes the same memory each time and nothing on the host depends on its
  /// results (core/cuda/capture.h has the rules). If recording fails the work goes on eagerly, and
  /// fallback() tells why.
  void run(const std::function<void()>& work);
  /// Forgets the recording, because memory that the work uses has moved.
  void reset();

  /// True when the next run() will replay.
  bool captured() const;
  /// Why the work is not captured although the device is a GPU; empty when it is, or has not been tried.
  const std::string& fallback() const { return fallback_; }
  /// Kernels, copies and the like in the graph; bytes of its memory. 0 when not captured.
  int64_t nodes() const;
  int64_t bytes() const;

 private:
  static constexpr int kEagerRuns = 2;
  Device device_;
  int runs_ = 0;
  std::unique_ptr<cuda::Graph> graph_;
  std::string fallback_;
};

}  // namespace occam
