#pragma once
// How long a piece of work takes, and the device's own limits to hold that against.
#include <cstdint>
#include <functional>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "core/tensor.h"

namespace occam {

struct TimingOptions {
  int64_t samples = 20;
  double sample_s = 0.1;  // least seconds of a sample
};

/// Milliseconds a step. A sample is as many steps as `sample_s` takes, between two events on a GPU, else
/// between two readings of the clock.
struct Timing {
  double ms = 0, low = 0, high = 0;  // median; 10 % and 90 % of the samples
  std::vector<double> samples;
};

/// Warms up, then samples; fewer when stop_requested().
Timing measure(Device device, const std::function<void()>& step, const TimingOptions& options);

/// Standard normal or, with high > low, uniform numbers that repeat every million: drawing tens of millions
/// on the host would take longer than what is timed, and no kernel notices.
Tensor random_values(const Shape& shape, TensorOptions options, double low = 0, double high = 0);

/// What the device reaches: a product of square matrices in `dtype` and a copy (bytes read and written).
struct Ceilings {
  double flops = 0, bytes = 0;  // a second
};
/// Measured once a process for each device and dtype. `tiny`: on little data, for tests.
const Ceilings& ceilings(Device device, DType dtype, bool tiny = false);

}  // namespace occam
