#pragma once
// A point in a stream's queue that the host waits for.

namespace occam::cuda {

class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  /// Behind all work queued on `stream` so far.
  void record(void* stream);
  /// Until the stream has passed the last record(); at once when there was none. The thread sleeps.
  void wait();

 private:
  void* event_ = nullptr;  // cudaEvent_t
};

}  // namespace occam::cuda
