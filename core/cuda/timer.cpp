#include "core/cuda/timer.h"

#include "core/cuda/check.h"

namespace occam::cuda {

namespace {
cudaEvent_t as_event(void* event) { return static_cast<cudaEvent_t>(event); }
}  // namespace

Timer::Timer() {
  cudaEvent_t event = nullptr;
  OCCAM_CUDA_CHECK(cudaEventCreate(&event));
  start_ = event;
  if (cudaError_t status = cudaEventCreate(&event); status != cudaSuccess) {
    report_cuda_error(cudaEventDestroy(as_event(start_)), "cudaEventDestroy");
    OCCAM_CUDA_CHECK(status);
  }
  stop_ = event;
}

Timer::~Timer() {
  report_cuda_error(cudaEventDestroy(as_event(start_)), "cudaEventDestroy");
  report_cuda_error(cudaEventDestroy(as_event(stop_)), "cudaEventDestroy");
}

void Timer::start(void* stream) { OCCAM_CUDA_CHECK(cudaEventRecord(as_event(start_), as_stream(stream))); }
void Timer::stop(void* stream) { OCCAM_CUDA_CHECK(cudaEventRecord(as_event(stop_), as_stream(stream))); }

float Timer::milliseconds() {
  OCCAM_CUDA_CHECK(cudaEventSynchronize(as_event(stop_)));
  float elapsed = 0;
  OCCAM_CUDA_CHECK(cudaEventElapsedTime(&elapsed, as_event(start_), as_event(stop_)));
  return elapsed;
}

}  // namespace occam::cuda
