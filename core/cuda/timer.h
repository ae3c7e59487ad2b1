#pragma once
// Time on the device between points of a stream, by CUDA events (resolution about 0.5 microseconds).
#include <cstdint>
#include <vector>

namespace occam::cuda {

class Timer {
 public:
  Timer();
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  void start(void* stream);
  void stop(void* stream);
  /// From start() to stop(); waits until the stream has passed stop(). Error{device} when either is missing.
  float milliseconds();

 private:
  void* start_ = nullptr;  // cudaEvent_t
  void* stop_ = nullptr;
};

/// Many points in time, numbered from 0 in the order of their queueing.
class Marks {
 public:
  Marks() = default;
  ~Marks();
  Marks(const Marks&) = delete;
  Marks& operator=(const Marks&) = delete;

  /// A point behind all work queued on `stream` so far.
  int64_t add(void* stream);
  int64_t count() const { return count_; }
  bool passed(int64_t mark) const;
  /// Waits for both.
  double seconds(int64_t from, int64_t to) const;
  /// Forgets all points; the next one is 0 again.
  void clear() { count_ = 0; }

 private:
  std::vector<void*> events_;  // cudaEvent_t, kept for reuse
  int64_t count_ = 0;
};

/// Keeps the stream busy for a while, so that the host can queue work ahead of the device.
void hold_stream(void* stream, double seconds);

}  // namespace occam::cuda
