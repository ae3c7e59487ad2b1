#include "nn/prof/ceilings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <tuple>

#include "core/allocator.h"
#include "core/grad_mode.h"
#include "core/rng.h"
#include "nn/module.h"
#include "nn/plan.h"
#include "ops/blas.h"

namespace occam {

namespace {

/// Best of a few runs of `repeats` calls each: what the device can do, not what it does on average.
double seconds_of(Device device, int repeats, const std::function<void()>& work) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  work();
  for (int run = 0; run < 3; ++run) {
    synchronize(device);
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < repeats; ++i) work();
    synchronize(device);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count() / repeats);
  }
  return best;
}

/// Normal numbers: zeros would run faster. A few rows are drawn and repeated.
Tensor random_matrix(int64_t n, DType dtype, Device device) {
  constexpr int64_t kRows = 16;
  Rng rng(0, "ceilings");
  Tensor rows = raw::to(raw::to(rand_normal({1, kRows, n}, 0, 1, rng), device), dtype);
  Tensor matrix = empty({n / kRows, kRows, n}, {dtype, device});
  return raw::reshape(matrix.copy_(rows), {n, n});
}

double product_rate(Device device, DType dtype) {
  const int64_t n = device.is_cpu() ? 512 : dtype == DType::bf16 ? 8192 : 4096;
  const Tensor a = random_matrix(n, dtype, device), b = random_matrix(n, dtype, device);
  Tensor d = empty({n, n}, {dtype, device});
  Product p{.device = device, .dtype_ab = dtype, .dtype_d = dtype, .trans_b = true, .m = n, .n = n, .k = n};
  const double s =
      seconds_of(device, 4, [&] { matrix_product(p, a.data_ptr(), b.data_ptr(), d.data_ptr()); });
  return 2 * double(n) * double(n) * double(n) / s;
}

double copy_rate(Device device) {
  const int64_t bytes = device.is_cpu() ? int64_t{64} << 20 : int64_t{256} << 20;
  Tensor from = full({bytes / 4}, 1, {DType::f32, device}), to = empty_like(from);
  return 2 * double(bytes) / seconds_of(device, 4, [&] { to.copy_(from); });
}

}  // namespace

DeviceCeilings measured_ceilings(Device device, DType dtype) {
  static std::mutex mutex;
  static std::map<std::tuple<DeviceType, int, DType, bool>, DeviceCeilings> known;
  // CPU kernels know no bf16: products there are f32.
  if (device.is_cpu()) dtype = DType::f32;
  std::lock_guard lock(mutex);
  const auto key = std::tuple(device.type, device.index, dtype, dtype == DType::f32 && tf32_allowed());
  if (auto it = known.find(key); it != known.end()) return it->second;
  NoGrad no_grad;
  const DeviceCeilings c{product_rate(device, dtype), copy_rate(device)};
  allocator_for(device).trim();
  return known[key] = c;
}

double datasheet_flops(const std::string& name, DType dtype, bool tf32) {
  struct Entry {
    const char* name;
    double bf16, tf32, f32;  // TFLOP/s, dense
  };
  // The first entry that the device's name begins with, as whole words.
  static constexpr Entry kDevices[] = {{"NVIDIA H100 PCIe", 756, 378, 51},
                                       {"NVIDIA H100 NVL", 835, 417, 60},
                                       {"NVIDIA H100", 989, 494, 67},
                                       {"NVIDIA H200 NVL", 835, 417, 60},
                                       {"NVIDIA H200", 989, 494, 67},
                                       {"NVIDIA GH200", 989, 494, 67},
                                       {"NVIDIA A100", 312, 156, 19.5},
                                       {"NVIDIA A10", 125, 62.5, 31.2},
                                       {"NVIDIA L40S", 362, 183, 91.6},
                                       {"NVIDIA L4", 121, 60, 30.3},
                                       {"NVIDIA GeForce RTX 4090", 165, 82.6, 82.6}};
  for (const Entry& e : kDevices) {
    const size_t length = std::strlen(e.name);
    if (name.compare(0, length, e.name) != 0) continue;
    if (name.size() > length && std::isalnum(static_cast<unsigned char>(name[length]))) continue;
    return 1e12 * (dtype == DType::bf16 ? e.bf16 : tf32 ? e.tf32 : e.f32);
  }
  return 0;
}

ModelRate::ModelRate(const Module& model, const Shape& image)
    : flops_per_image_(train_flops_per_image(model, image)) {
  if (model.device().is_cpu()) return;
  measured_ = measured_ceilings(model.device(), model.compute_dtype()).flops;
  datasheet_ = datasheet_flops(device_name(), model.compute_dtype(), tf32_allowed());
}

ModelRate::Share ModelRate::share(double images_per_s) const {
  const double flops = images_per_s * flops_per_image_;
  return {measured_ > 0 ? flops / measured_ : 0, datasheet_ > 0 ? flops / datasheet_ : 0};
}

std::string ModelRate::text(double images_per_s) const {
  if (measured_ == 0) return "";
  const Share s = share(images_per_s);
  return fmt::format(", MFU {:.1f} % of measured, {}", 100 * s.of_measured,
                     datasheet_ > 0 ? fmt::format("{:.1f} % of datasheet", 100 * s.of_datasheet)
                                    : "unknown device: no datasheet figure");
}

double train_flops_per_image(const Module& model, const Shape& image) {
  return 3 * 2 * double(plan_of(model, image).total().macs);
}

}  // namespace occam
