// Times of the kernel that makes batches and of the whole loader, on a GPU:
//   test_data --gtest_also_run_disabled_tests --gtest_filter='*RenderSpeed*'
#include <gtest/gtest.h>

#if OCCAM_CUDA
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

#include "core/cuda/timer.h"
#include "data/loader.h"
#include "data/render/kernel.h"

namespace occam::testing {
namespace {

constexpr int64_t kImages = 50000, kSide = 32, kBatch = 1024;

/// Pictures of random bytes.
class Noise : public Dataset {
 public:
  Noise() : pixels_(size_t(kImages * kSide * kSide * 3)) {
    uint64_t x = 88172645463325252u;
    for (uint8_t& p : pixels_) {
      x ^= x << 13, x ^= x >> 7, x ^= x << 17;
      p = uint8_t(x);
    }
    for (int k = 0; k < 100; ++k) names_.push_back(std::to_string(k));
  }
  int64_t size() const override { return kImages; }
  const std::vector<std::string>& class_names() const override { return names_; }
  int64_t channels() const override { return 3; }
  int64_t label(int64_t i) const override { return i % 100; }
  std::string path(int64_t) const override { return "noise"; }
  Rect common_size() const override { return {0, 0, kSide, kSide}; }
  Sample get(int64_t i) const override {
    Sample sample{Image(kSide, kSide, 3), label(i)};
    std::memcpy(sample.image.data(), pixels_.data() + i * sample.image.size(), size_t(sample.image.size()));
    return sample;
  }

 private:
  std::vector<uint8_t> pixels_;
  std::vector<std::string> names_;
};

Transform transform_of(const Augment& augment) {
  TransformOptions o;
  o.size = kSide;
  if (augment.crop != CropMode::resized) o.filter.reset();
  o.mean = o.std = {0.5f, 0.5f, 0.5f};
  o.augment = augment;
  return Transform(o);
}

/// Medians over rounds of batches with other images each.
void time_kernel(const char* name, DatasetPtr data, const Augment& augment, const MixOptions& mix,
                 DType dtype) {
  constexpr int kBatches = 12, kRounds = 30;
  Device device = cuda_device();
  Renderer renderer(data, transform_of(augment), {device, dtype, Resident::always, 2, 100, mix.active()});
  std::vector<PlannedBatch> planned;
  std::vector<RenderedBatch> made(kBatches);
  std::vector<kernels::RenderArgs> arguments;
  std::vector<double> host;
  for (int pass = 0; pass < 2; ++pass) {  // the first one fills the store
    planned.clear(), host.clear();
    Rng pick(7, "pick");
    for (int n = 0; n < kBatches; ++n) {
      std::vector<int64_t> indices;
      for (int64_t i = 0; i < kBatch; ++i) indices.push_back(pick.below(kImages));
      auto start = std::chrono::steady_clock::now();
      PlannedBatch batch = renderer.begin(indices);
      for (int64_t row = 0; row < kBatch; ++row) {
        Rng rng(uint64_t(n), uint64_t(indices[size_t(row)]));
        renderer.plan(batch, row, indices[size_t(row)], rng);
      }
      host.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
      Rng draws(uint64_t(n), "mix");
      batch.mix = draw_mix(mix, kSide, kSide, draws);
      planned.push_back(renderer.upload(std::move(batch)));
      renderer.render(planned.back(), indices, made[size_t(n)]);
    }
  }
  for (size_t n = 0; n < planned.size(); ++n) arguments.push_back(renderer.arguments(planned[n], made[n]));
  void* stream = current_stream(device).handle;
  std::vector<double> times;
  for (int round = 0; round < kRounds; ++round) {
    cuda::Timer timer;
    timer.start(stream);
    for (size_t n = 0; n < made.size(); ++n) {
      if (dtype == DType::f32)
        kernels::render(arguments[n], made[n].images.data<float>(), stream);
      else
        kernels::render(arguments[n], made[n].images.data<bf16>(), stream);
    }
    timer.stop(stream);
    times.push_back(1000.0 * double(timer.milliseconds()) / kBatches);
  }
  std::ranges::sort(times);
  std::ranges::sort(host);
  double bytes = double(kBatch * kSide * kSide * 3) * double(1 + size_of(dtype));
  std::printf("kernel  %-28s %s %6.1f us, %4.2f TB/s; its plans on one core %4.0f us\n", name,
              std::string(name_of(dtype)).c_str(), times[kRounds / 2], bytes / times[kRounds / 2] / 1e6,
              host[kBatches / 2]);
}

/// Of each epoch the rate with a consumer that sleeps `pause` between batches, and the host time of next().
void time_loader(const char* name, DatasetPtr data, LoaderOptions o, std::chrono::microseconds pause) {
  o.batch = kBatch;
  o.shuffle = o.drop_last = true;
  o.epochs = 3;
  o.mix = {.mixup = 0.8, .cutmix = 1};
  o.device = cuda_device();
  Loader loader(data, transform_of({.crop = CropMode::pad, .flip = 0.5, .erase = 0.25}), o);
  for (int64_t epoch = 0; epoch < o.epochs; ++epoch) {
    std::vector<double> waits;
    auto start = std::chrono::steady_clock::now();
    auto since = [](auto t) {
      return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - t).count();
    };
    while (true) {
      auto asked = std::chrono::steady_clock::now();
      std::optional<Batch> batch = loader.next();
      if (!batch) break;
      waits.push_back(since(asked));
      if (pause.count() > 0) std::this_thread::sleep_for(pause);
    }
    synchronize(o.device);
    double rate = double(waits.size()) * 1e6 / since(start);
    std::ranges::sort(waits);
    std::printf("loader  %-28s epoch %lld: %6.0f batches/s; next() %5.0f us, at most %5.0f us\n", name,
                static_cast<long long>(epoch), rate, waits[waits.size() / 2], waits.back());
  }
}

TEST(RenderSpeed, DISABLED_Table) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  std::printf("%s; %lld images of %lld x %lld, batches of %lld\n", device_name().c_str(),
              static_cast<long long>(kImages), static_cast<long long>(kSide), static_cast<long long>(kSide),
              static_cast<long long>(kBatch));
  const Augment shift{.crop = CropMode::pad, .flip = 0.5};
  Augment erasing = shift, parts = {.crop = CropMode::resized, .flip = 0.5};
  erasing.erase = parts.erase = 0.25;
  const MixOptions mix{.mixup = 0.8, .cutmix = 1};
  auto data = std::make_shared<Noise>();
  for (DType dtype : {DType::f32, DType::bf16}) {
    time_kernel("normalise", data, {}, {}, dtype);
    time_kernel("+ shift, flip, mix", data, shift, mix, dtype);
    time_kernel("+ erase", data, erasing, mix, dtype);
    time_kernel("parts resized, flip, erase, mix", data, parts, mix, dtype);
  }
  LoaderOptions o;
  o.dtype = DType::bf16;
  o.resident = Resident::always;
  for (int workers : {0, 1, 8}) {
    o.workers = workers;
    std::string name = "resident, " + std::to_string(workers) + " workers";
    time_loader(name.c_str(), std::make_shared<Noise>(), o, {});
  }
  time_loader("resident, 5 ms a step", std::make_shared<Noise>(), o, std::chrono::milliseconds(5));
  o.resident = Resident::never;
  time_loader("streamed, 8 workers", std::make_shared<Noise>(), o, {});
}

}  // namespace
}  // namespace occam::testing
#endif
