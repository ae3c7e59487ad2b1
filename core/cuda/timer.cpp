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

Marks::~Marks() {
  for (void* event : events_) report_cuda_error(cudaEventDestroy(as_event(event)), "cudaEventDestroy");
}

int64_t Marks::add(void* stream) {
  if (count_ == int64_t(events_.size())) {
    cudaEvent_t event = nullptr;
    OCCAM_CUDA_CHECK(cudaEventCreate(&event));
    events_.push_back(event);
  }
  OCCAM_CUDA_CHECK(cudaEventRecord(as_event(events_[size_t(count_)]), as_stream(stream)));
  return count_++;
}

bool Marks::passed(int64_t mark) const {
  cudaError_t status = cudaEventQuery(as_event(events_.at(size_t(mark))));
  if (status == cudaErrorNotReady) {
    cudaGetLastError();  // no error for the next launch check
    return false;
  }
  OCCAM_CUDA_CHECK(status);
  return true;
}

double Marks::seconds(int64_t from, int64_t to) const {
  cudaEvent_t a = as_event(events_.at(size_t(from))), b = as_event(events_.at(size_t(to)));
  OCCAM_CUDA_CHECK(cudaEventSynchronize(a));
  OCCAM_CUDA_CHECK(cudaEventSynchronize(b));
  float elapsed = 0;
  OCCAM_CUDA_CHECK(cudaEventElapsedTime(&elapsed, a, b));
  return double(elapsed) * 1e-3;
}

}  // namespace occam::cuda
