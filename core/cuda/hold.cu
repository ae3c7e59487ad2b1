#include "core/cuda/launch.h"
#include "core/cuda/timer.h"

namespace occam::cuda {

namespace {

__device__ uint64_t now_ns() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

__global__ void hold_for(uint64_t nanoseconds) {
  const uint64_t start = now_ns();
  while (now_ns() - start < nanoseconds) __nanosleep(200);
}

}  // namespace

void hold_stream(void* stream, double seconds) {
  hold_for<<<1, 1, 0, as_stream(stream)>>>(uint64_t(seconds * 1e9));
  check_launch("hold_for", stream);
}

}  // namespace occam::cuda
