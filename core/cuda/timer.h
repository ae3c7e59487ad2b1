#pragma once
// Time on the device between two points of a stream, by CUDA events (resolution about 0.5 microseconds).

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

}  // namespace occam::cuda
