#include "core/cuda/event.h"

#include "core/cuda/check.h"

namespace occam::cuda {

namespace {
cudaEvent_t as_event(void* event) { return static_cast<cudaEvent_t>(event); }
}  // namespace

Event::Event() {
  cudaEvent_t event = nullptr;
  OCCAM_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync));
  event_ = event;
}

Event::~Event() { report_cuda_error(cudaEventDestroy(as_event(event_)), "cudaEventDestroy"); }

void Event::record(void* stream) { OCCAM_CUDA_CHECK(cudaEventRecord(as_event(event_), as_stream(stream))); }
void Event::wait() { OCCAM_CUDA_CHECK(cudaEventSynchronize(as_event(event_))); }

}  // namespace occam::cuda
