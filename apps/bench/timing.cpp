#include "apps/bench/timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

#include "apps/common/app.h"
#include "core/rng.h"
#include "core/stream.h"
#include "ops/blas.h"
#if OCCAM_CUDA
#include "core/cuda/timer.h"
#endif

namespace occam {
namespace {

double host_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// Milliseconds of `count` steps.
double run(Device device, const std::function<void()>& step, int64_t count) {
#if OCCAM_CUDA
  if (device.is_cuda()) {
    cuda::Timer timer;
    void* stream = current_stream(device).handle;
    timer.start(stream);
    for (int64_t i = 0; i < count; ++i) step();
    timer.stop(stream);
    return timer.milliseconds();
  }
#endif
  const double start = host_ms();
  for (int64_t i = 0; i < count; ++i) step();
  return host_ms() - start;
}

double product_flops(Device device, DType dtype, int64_t n, const TimingOptions& options) {
  const Tensor a = random_values({n, n}, {dtype, device}), b = raw::clone(a), d = empty_like(a);
  const Product product{.device = device, .dtype_ab = dtype, .dtype_d = dtype, .m = n, .n = n, .k = n};
  const Timing t = measure(
      device, [&] { matrix_product(product, a.data_ptr(), b.data_ptr(), d.data_ptr()); }, options);
  return 2 * std::pow(double(n), 3) / (t.ms * 1e-3);
}

double copy_bytes(Device device, int64_t bytes, const TimingOptions& options) {
  const Tensor from = zeros({bytes / 4}, {DType::f32, device}), to = empty_like(from);
  Tensor target = to;
  const Timing t = measure(
      device,
      [&] {
        if (device.is_cuda()) {
          target.copy_(from);
          return;
        }
        constexpr int64_t kPart = int64_t{1} << 18;  // elements: 1 MiB
#pragma omp parallel for
        for (int64_t i = 0; i < from.numel(); i += kPart)
          std::memcpy(to.data<float>() + i, from.data<float>() + i,
                      size_t(std::min(kPart, from.numel() - i)) * sizeof(float));
      },
      options);
  return 2 * double(bytes) / (t.ms * 1e-3);
}

}  // namespace

Timing measure(Device device, const std::function<void()>& step, const TimingOptions& options) {
  synchronize(device);
  run(device, step, 3);
  const double once = std::max(run(device, step, 3) / 3, 1e-4);
  const auto steps = std::max<int64_t>(1, int64_t(std::ceil(1e3 * options.sample_s / once)));
  run(device, step, steps);
  Timing t;
  for (int64_t i = 0; i < options.samples && !stop_requested(); ++i)
    t.samples.push_back(run(device, step, steps) / double(steps));
  if (t.samples.empty()) return t;
  std::vector<double> sorted = t.samples;
  std::sort(sorted.begin(), sorted.end());
  auto at = [&](double share) { return sorted[size_t(share * double(sorted.size() - 1) + 0.5)]; };
  t.ms = at(0.5), t.low = at(0.1), t.high = at(0.9);
  return t;
}

Tensor random_values(const Shape& shape, TensorOptions options, double low, double high) {
  Rng rng(0, "bench" + shape.str());
  const int64_t count = shape.numel(), drawn = std::min<int64_t>(count, 1 << 20);
  Tensor some = high > low ? rand_uniform({drawn}, low, high, rng) : rand_normal({drawn}, 0, 1, rng);
  some = raw::to(raw::to(some, options.device), options.dtype);
  const Tensor all = empty({count}, options);
  for (int64_t at = 0; at < count; at += drawn) {
    const int64_t n = std::min(drawn, count - at);
    raw::slice(all, 0, at, n).copy_(raw::slice(some, 0, 0, n));
  }
  return raw::reshape(all, shape);
}

const Ceilings& ceilings(Device device, DType dtype, bool tiny) {
  if (device.is_cpu() && dtype != DType::f64) dtype = DType::f32;  // what the CPU computes halves in
  static std::map<std::tuple<std::string, DType, bool, bool>, Ceilings> measured;
  const auto [found, is_new] = measured.try_emplace({device.str(), dtype, tf32_allowed(), tiny});
  if (is_new) {
    const TimingOptions options{.samples = 10, .sample_s = device.is_cuda() ? 0.02 : 0.0};
    const int64_t side = tiny ? 256 : device.is_cuda() ? 8192 : 2048;
    const int64_t bytes = tiny ? 1 << 20 : device.is_cuda() ? int64_t{1} << 31 : int64_t{1} << 28;
    found->second = {product_flops(device, dtype, side, options), copy_bytes(device, bytes, options)};
  }
  return found->second;
}

}  // namespace occam
