// How fast a model is here: inference and training steps on images that are already on the device.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/common/model.h"
#include "apps/common/progress.h"
#include "core/allocator.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "core/report/html.h"
#include "core/rng.h"
#include "nn/capture.h"
#include "nn/plan.h"
#include "nn/train/loop.h"
#include "nn/train/loss.h"

namespace occam {
namespace {

struct Config : CommonConfig {
  ModelConfig model;
  std::vector<std::string> modes{"infer", "train"};
  std::vector<int64_t> batches;
  int64_t samples = 20;
  double sample_s = 0.1;

  template <class V>
  void visit(V& v) {
    CommonConfig::visit(v);
    v("model", model, "what is timed; unset: deit_tiny_patch16_224");
    v("modes", modes, "infer: forward; train: forward, loss, backward and AdamW", Choices{"infer", "train"});
    v("batches", batches, "images at a time, a list; unset: 1 and 8, on a GPU 1 and 256", Range{1, 1 << 16});
    v("samples", samples, "timings of which the median is taken", Range{3, 1000});
    v("sample_s", sample_s, "least seconds of a timing: as many steps as that takes", Range{0, 60});
  }
};

struct Timing {
  double median = 0, low = 0, high = 0;  // seconds a step; low and high: 10 % and 90 % of the samples
};

class Bench {
 public:
  Bench(App& app, const Config& config) : app_(app), config_(config), model_(make_model(config.model)) {
    model_->to(app.device());
    model_->set_compute_dtype(compute_dtype_of(config.precision));
  }

  const VisionTransformer& model() const { return *model_; }

  /// The chosen precision must give what f32 gives before any time counts. bf16 keeps 8 bits: some hundred
  /// roundings in a row leave about 2^-9 * sqrt(100) = 2 % of the outputs' RMS; 10 % would be another result.
  void check_outputs() {
    NoGrad no_grad;
    model_->eval();
    Batch batch = make_batch(2);
    const DType dtype = model_->compute_dtype();
    std::vector<double> got = outputs(batch, dtype), expected = outputs(batch, DType::f32);
    model_->set_compute_dtype(dtype);
    double error = 0, size = 0;
    for (size_t i = 0; i < got.size(); ++i)
      error += std::pow(got[i] - expected[i], 2), size += std::pow(expected[i], 2);
    const double relative = std::sqrt(error / size);
    OCCAM_CHECK(relative < 0.1, ErrorKind::non_finite,
                "in {} the model's outputs are {:.3g} of their size away from those in f32: nothing is timed",
                config_.precision, relative);
  }

  Json time(const std::string& mode, int64_t batch_size) {
    const Batch batch = make_batch(batch_size);
    Allocator& memory = allocator_for(app_.device());
    memory.reset_peak();
    Timing t;
    if (mode == "infer") {
      model_->eval();
      const Tensor images = raw::to(batch.images, model_->compute_dtype());
      CapturedForward forward(*model_);
      t = measure([&] { forward(images); });
    } else {
      model_->train();
      LoopConfig loop_config;
      loop_config.batch = batch_size;
      loop_config.log_every = 1'000'000'000;
      TrainLoop loop(*model_, loop_config, int64_t{1} << 40, 1, 0);
      t = measure([&] {
        loop.run(batch, [&](const Batch& part) {
          return label_loss(model_->logits(raw::to(part.images, model_->compute_dtype())), part, 0.1);
        });
      });
      model_->zero_grad();
    }
    // A backward pass takes twice the products of a forward pass.
    const double flops = 2 * double(plan_of(*model_, model_->shape().image()).total().macs) *
                         double(batch_size) * (mode == "train" ? 3 : 1);
    return {{"model", model_->model_name()},
            {"mode", mode},
            {"batch", batch_size},
            {"precision", config_.precision},
            {"ms", 1e3 * t.median},
            {"ms_low", 1e3 * t.low},
            {"ms_high", 1e3 * t.high},
            {"images_per_s", double(batch_size) / t.median},
            {"tflops", flops / t.median / 1e12},
            {"peak_memory_mb", double(memory.stats().peak_allocated) / 1e6}};
  }

 private:
  Batch make_batch(int64_t size) const {
    Rng rng(0, "bench");
    Batch batch;
    batch.images = raw::to(rand_normal(model_->shape().image().with(0, size), 0, 1, rng), app_.device());
    std::vector<int64_t> labels(static_cast<size_t>(size));
    for (int64_t& label : labels) label = rng.below(model_->shape().classes);
    batch.labels = raw::to(from_vector(labels), app_.device());
    batch.indices.resize(size_t(size));
    return batch;
  }

  std::vector<double> outputs(const Batch& batch, DType dtype) {
    model_->set_compute_dtype(dtype);
    return raw::to((*model_)(raw::to(batch.images, dtype)), DType::f32).to_vector<double>();
  }

  /// Each sample is a run of steps between two waits for the device, so that waiting does not count.
  Timing measure(const std::function<void()>& step) const {
    using Clock = std::chrono::steady_clock;
    auto run = [&](int64_t steps) {
      synchronize(app_.device());
      const Clock::time_point start = Clock::now();
      for (int64_t i = 0; i < steps; ++i) step();
      synchronize(app_.device());
      return std::chrono::duration<double>(Clock::now() - start).count();
    };
    run(3);
    const auto steps =
        std::max<int64_t>(1, int64_t(std::ceil(config_.sample_s / std::max(run(3) / 3, 1e-7))));
    run(steps);
    std::vector<double> seconds;
    for (int64_t i = 0; i < config_.samples && !stop_requested(); ++i)
      seconds.push_back(run(steps) / double(steps));
    if (seconds.empty()) return {};
    std::sort(seconds.begin(), seconds.end());
    auto at = [&](double share) { return seconds[size_t(share * double(seconds.size() - 1) + 0.5)]; };
    return {at(0.5), at(0.1), at(0.9)};
  }

  App& app_;
  const Config& config_;
  std::unique_ptr<VisionTransformer> model_;
};

Table table_of(const Json& rows) {
  Table table{
      .columns = {"mode", "batch", "precision", "ms", "10 %", "90 %", "images/s", "TFLOP/s", "peak MB"}};
  for (const Json& r : rows) {
    auto cell = [&](const char* key, int digits) { return Cell(r.at(key).get<double>(), digits); };
    table.add({r.at("mode").get<std::string>(), r.at("batch").get<int64_t>(),
               r.at("precision").get<std::string>(), cell("ms", 3), cell("ms_low", 3), cell("ms_high", 3),
               cell("images_per_s", 0), cell("tflops", 3), cell("peak_memory_mb", 0)});
  }
  return table;
}

void bench(App& app, Config& config) {
  if (config.model.name.empty() && config.model.checkpoint.empty())
    config.model.name = "deit_tiny_patch16_224";
  if (config.batches.empty()) config.batches = {1, app.device().is_cuda() ? 256 : 8};
  Bench bench(app, config);
  app.checked();
  RunFolder* run = config.out.dir.empty() ? nullptr : &app.start_run(config);
  bench.check_outputs();
  Json rows = Json::array();
  Progress progress("bench", int64_t(config.modes.size() * config.batches.size()), "rows");
  for (const std::string& mode : config.modes)
    for (int64_t batch : config.batches) {
      rows.push_back(bench.time(mode, batch));
      if (stop_requested()) return;
      progress.update(int64_t(rows.size()));
    }
  progress.finish();
  const Json summary = {{"device", app.device().str()}, {"rows", rows}};
  app.print(bench.model().model_name() + " on " + app.device().str() + "\n" + to_text(table_of(rows)));
  if (run != nullptr) {
    HtmlReport report("Speed of " + bench.model().model_name(), app.device().str());
    report.table(table_of(rows));
    report.write(run->path() / "report.html");
  }
  app.finish(summary);
}

}  // namespace
}  // namespace occam

int main(int argc, char** argv) {
  using namespace occam;
  AppInfo info;
  info.name = "bench";
  info.summary =
      "Times a model's inference and training step on images that are already on the device: median, spread, "
      "images/s, FLOP rate and memory.";
  info.examples = {"bench model.name=deit_small_patch16_224 modes=[infer] batches=[1,64,256]",
                   "bench model.checkpoint=runs/d/students/bilstm-1-2.safetensors",
                   "bench model.name=deit_base_patch16_224 precision=bf16 --json"};
  info.run_folder = false;
  return run_app<Config>(argc, argv, info, bench);
}
