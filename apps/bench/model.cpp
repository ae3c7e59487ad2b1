#include "apps/bench/model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/common/app.h"
#include "apps/common/model.h"
#include "autograd/apply.h"
#include "autograd/node.h"
#include "core/allocator.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "core/rng.h"
#include "nn/capture.h"
#include "nn/distill/distill.h"
#include "nn/mixers/attention/attention.h"
#include "nn/plan.h"
#include "nn/prof/step_profile.h"
#include "nn/train/loss.h"
#include "ops/attention_stats/op.h"

namespace occam {
namespace {

/// Sums what every op call reads and writes while it lives, its inputs and outputs once each. What records
/// gradients counts three times: its backward reads and writes about twice what its forward does.
class Traffic : public OpObserver {
 public:
  void after(const OpEntry&, In inputs, const Outs&, const Cost& cost) override {
    const bool tracked =
        std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t && requires_grad(t); });
    bytes += cost.bytes * (tracked ? 3 : 1);
  }
  double bytes = 0;
};

double forward_flops(const VisionTransformer& model) {
  return 2 * double(plan_of(model, model.shape().image()).total().macs);
}

class ModelTimer {
 public:
  ModelTimer(const ModelJob& job, const TimingOptions& options)
      : job_(job), options_(options), model_(make_model(job.model)) {
    model_->to(job.device);
    model_->set_compute_dtype(compute_dtype_of(job.precision));
    flops_ = forward_flops(*model_);
  }

  Json time() {
    check_outputs();
    const Timing t = job_.mode == "infer"     ? infer()
                     : job_.mode == "train"   ? train()
                     : job_.mode == "profile" ? profile()
                                              : distill();
    const double b = double(job_.batch), flops = flops_ * b;
    const Ceilings& most = ceilings(job_.device, model_->compute_dtype(), job_.tiny);
    const double matmul_ms = 1e3 * flops / most.flops, bytes_ms = 1e3 * least_ / most.bytes;
    Json line = {{"who", "occam"},  {"what", job_.mode},           {"model", model_->model_name()},
                 {"B", job_.batch}, {"precision", job_.precision}, {"mode", how_}};
    line.update(json_of(t));
    line.update({{"img_s", 1e3 * b / t.ms},
                 {"mfu_tflops", flops / t.ms / 1e9},
                 {"peak_gb", peak_gb_},
                 {"floor_matmul_ms", matmul_ms},
                 {"floor_bytes_ms", bytes_ms},
                 {"floor_ms", std::max(matmul_ms, bytes_ms)},
                 {"op_traffic_ms", 1e3 * traffic_ / most.bytes},
                 {"share_of_ceiling", matmul_ms / t.ms},
                 {"ceiling_tflops", most.flops / 1e12},
                 {"ceiling_tb_s", most.bytes / 1e12},
                 {"device", job_.device.is_cuda() ? device_name() : "cpu"}});
    line.update(more_);
    return line;
  }

  /// The chosen precision must give what f32 gives before any time counts. bf16 keeps 8 bits: some hundred
  /// roundings in a row leave about 2^-9 * sqrt(100) = 2 % of the outputs' RMS; 10 % would be another result.
  void check_outputs() {
    NoGrad no_grad;
    model_->eval();
    const Tensor images = random_batch(2).images;
    const DType dtype = model_->compute_dtype();
    const std::vector<double> got = logits(images, dtype), expected = logits(images, DType::f32);
    model_->set_compute_dtype(dtype);
    double error = 0, size = 0;
    for (size_t i = 0; i < got.size(); ++i)
      error += std::pow(got[i] - expected[i], 2), size += std::pow(expected[i], 2);
    const double relative = std::sqrt(error / size);
    OCCAM_CHECK(relative < 0.1, ErrorKind::non_finite,
                "in {} the model's outputs are {:.3g} of their size away from those in f32: nothing is timed",
                job_.precision, relative);
  }

  VisionTransformer& model() { return *model_; }
  Batch random_batch(int64_t size) const {
    Rng rng(0, "bench");
    Batch batch;
    batch.images = random_values(model_->shape().image().with(0, size), {DType::f32, job_.device});
    std::vector<int64_t> labels(static_cast<size_t>(size));
    for (int64_t& label : labels) label = rng.below(model_->shape().classes);
    batch.labels = raw::to(from_vector(labels), job_.device);
    batch.indices.resize(size_t(size));
    return batch;
  }
  std::vector<double> logits(const Tensor& images, DType dtype) {
    model_->set_compute_dtype(dtype);
    return raw::to((*model_)(raw::to(images, dtype)), DType::f32).to_vector<double>();
  }

 private:
  Tensor random_images() const { return raw::to(random_batch(job_.batch).images, model_->compute_dtype()); }

  Timing timed(const std::function<void()>& step) {
    Allocator& memory = allocator_for(job_.device);
    memory.reset_peak();
    const Timing t = measure(job_.device, step, options_);
    peak_gb_ = peak_gb(job_.device);
    return t;
  }

  void tell_capture(bool captured, const std::string& fallback) {
    how_ = captured ? "captured" : "plain";
    if (!fallback.empty()) more_["not_captured_because"] = fallback;
  }

  void count_traffic(const std::function<void()>& once) {
    Traffic traffic;
    once();
    traffic_ = traffic.bytes;
    // Weights and images cannot but be read; what one op leaves for the next may stay in the L2 cache.
    const double size = double(size_of(model_->compute_dtype()));
    least_ = size * double(plan_of(*model_, model_->shape().image()).total().params) +
             size * double(job_.batch * model_->shape().image().numel());
  }

  int64_t state_of(const Module& model) const {
    return optimizer_bytes(model, job_.loop.optim, job_.loop.ema > 0);
  }

  /// `step` must not be captured.
  void profile_steps(Module& model, int64_t state, const std::function<void()>& step) {
    if (job_.profile_steps == 0) return;
    StepProfile profile(model, state, job_.profile_steps);
    while (!profile.done() && !stop_requested()) profile.run(step);
    if (!profile.done()) return;
    std::filesystem::create_directories(job_.profile_folder);
    profile.write(job_.profile_folder);
  }

  Timing infer() {
    NoGrad no_grad;
    model_->eval();
    const Tensor images = random_images();
    count_traffic([&] { (*model_)(images); });
    CapturedForward forward(*model_);
    const Timing t = timed([&] { forward(images); });
    tell_capture(forward.captured(), forward.fallback());
    profile_steps(*model_, 0, [&] { (*model_)(images); });
    return t;
  }

  Timing train() {
    model_->train();
    const LossFn loss = [&](const Batch& part) {
      return label_loss(model_->logits(raw::to(part.images, model_->compute_dtype())), part,
                        job_.label_smoothing);
    };
    std::unique_ptr<Loader> loader;
    if (job_.data) loader = open_loader();
    if (loader && loader->residence().resident)
      while (!stop_requested() && loader->next()) {
      }  // the first epoch brings the pixels that later ones find
    auto next = [&] {
      std::optional<Batch> batch = loader->next();
      if (!batch) batch = loader->next();  // between two epochs there is none
      OCCAM_CHECK(batch && batch->size() == job_.batch, ErrorKind::usage,
                  "data: fewer images than a batch of {}", job_.batch);
      return std::move(*batch);
    };
    const Batch batch = loader ? next() : random_batch(job_.batch);
    count_traffic([&] { loss(batch); });
    flops_ *= 3;  // a backward pass takes twice the products of a forward pass
    TrainLoop loop = make_loop(*model_);
    const Timing t = timed([&] { loop.run(loader ? next() : batch, loss); });
    tell_capture(loop.captured(), loop.capture_fallback());
    if (loader) more_["data"] = loader->residence().text;
    loop.set_capture(false);
    profile_steps(*model_, state_of(*model_), [&] { loop.run(loader ? next() : batch, loss); });
    model_->zero_grad();
    return t;
  }

  std::unique_ptr<Loader> open_loader() const {
    const DataConfig data = resolve(*job_.data, {"", model_->shape().image_size, model_->shape().channels});
    LoaderOptions options;
    options.batch = job_.batch;
    options.shuffle = options.drop_last = true;
    options.epochs = 1'000'000;
    options.classes = model_->shape().classes;
    options.device = job_.device;
    options.dtype = model_->compute_dtype();
    return make_loader(data, make_datasets(data).train, options, true);
  }

  TrainLoop make_loop(Module& model) {
    LoopConfig config = job_.loop;
    config.batch = job_.batch;
    config.log_every = 1'000'000'000;
    int64_t trained = 0;
    for (const auto& [name, parameter] : model.named_parameters())
      if (parameter->trainable()) trained += parameter->numel();
    // The update reads parameter, gradient and both moments, writes three of them and the shadow.
    const double update = double(trained) * (7 * 4 + (model_->compute_dtype() == DType::f32 ? 0.0 : 2.0));
    traffic_ += update;
    least_ += update;
    return TrainLoop(model, config, int64_t{1} << 40, 1, 0);
  }

  Timing profile() {
    NoGrad no_grad;
    model_->eval();
    const Tensor images = random_images();
    Timing own;
    {
      CapturedForward forward(*model_);
      own = measure(
          job_.device, [&] { forward(images); }, options_);
    }
    const VitShape& shape = model_->shape();
    AttentionStatsOptions wanted;
    wanted.prefix_tokens = shape.distilled ? 2 : 1;
    wanted.grid_h = wanted.grid_w = shape.image_size / shape.patch;
    wanted.order_metrics = job_.order_metrics;
    std::vector<Tensor> stats(size_t(shape.depth));
    for (int64_t i = 0; i < shape.depth; ++i) {
      auto* attention = dynamic_cast<Attention*>(&model_->block(i).mixer());
      OCCAM_CHECK(attention != nullptr, ErrorKind::usage, "bench.mode=profile: block {} has no attention", i);
      attention->on_qkv(
          [&stats, &wanted, i](const Tensor& qkv) { stats[size_t(i)] = attention_stats(qkv, wanted); });
    }
    count_traffic([&] { (*model_)(images); });
    CapturedForward forward(*model_);
    const Timing t = timed([&] { forward(images); });
    tell_capture(forward.captured(), forward.fallback());
    profile_steps(*model_, 0, [&] { (*model_)(images); });
    for (int64_t i = 0; i < shape.depth; ++i) dynamic_cast<Attention&>(model_->block(i).mixer()).on_qkv({});
    more_.update(
        {{"infer_ms", own.ms}, {"ratio_to_infer", t.ms / own.ms}, {"order_metrics", job_.order_metrics}});
    return t;
  }

  /// Stage 1, teacher-forced: every new mixer is given what the teacher's attention got and learns its head
  /// outputs.
  Timing distill() {
    DistillConfig config;
    config.teacher = job_.model;
    config.input = "teacher";
    config.label_weight = 0;
    DistillRun run{.name = "all", .mixer = {.with = job_.mixer}};
    for (int64_t i = 0; i < model_->shape().depth; ++i) run.blocks.push_back(i);
    const auto student = make_student(job_.model, run, 0, job_.device, model_->compute_dtype());
    student->train();
    OCCAM_CHECK(has_taps(*student, run), ErrorKind::usage,
                "bench.mixer={}: it has no head outputs to be matched", job_.mixer);
    Distillation distillation(config, run, *model_, *student);
    distillation.enter(1);
    const Plan plan = plan_of(*student, student->shape().image());
    for (const Plan::Row& row : plan.rows())
      if (glob_match("blocks.*.attn*", row.path) && !glob_match("*.proj", row.path))
        flops_ += 3 * 2 * double(row.own_macs);
    const Batch batch = random_batch(job_.batch);
    count_traffic([&] { distillation.loss(batch); });
    TrainLoop loop = make_loop(*student);
    const auto step = [&] { loop.run(batch, [&](const Batch& part) { return distillation.loss(part); }); };
    const Timing t = timed(step);
    tell_capture(loop.captured(), loop.capture_fallback());
    loop.set_capture(false);
    profile_steps(*student, state_of(*student), step);
    return t;
  }

  const ModelJob& job_;
  const TimingOptions& options_;
  std::unique_ptr<VisionTransformer> model_;
  double flops_ = 0;    // of one image
  double least_ = 0;    // bytes that one step cannot but move
  double traffic_ = 0;  // and those of its ops taken one by one
  double peak_gb_ = 0;
  std::string how_ = "plain";
  Json more_ = Json::object();
};

}  // namespace

Json json_of(const Timing& t) {
  return {{"ms", t.ms}, {"ms_low", t.low}, {"ms_high", t.high}, {"samples_ms", t.samples}};
}

double peak_gb(Device device) {
  return double(allocator_for(device).stats().peak_allocated) / double(1 << 30);
}

Json time_model(const ModelJob& job, const TimingOptions& options) { return ModelTimer(job, options).time(); }

void write_agreement(const ModelConfig& model, Device device, const std::string& prefix) {
  ModelJob job{.model = model, .device = device};
  const TimingOptions options;
  ModelTimer timer(job, options);
  NoGrad no_grad;
  Rng rng(0, "agreement");
  for (const auto& [name, parameter] : timer.model().named_parameters()) {
    if (name.ends_with(".bias")) parameter->set_values(rand_normal(parameter->shape(), 0, 0.1, rng));
    if (name.ends_with("qkv.weight")) {
      Tensor larger = raw::clone(parameter->master());
      larger.add_(parameter->master(), 2);
      parameter->set_values(larger);
    }
  }
  timer.model().eval();
  const Tensor images = timer.random_batch(8).images;
  const Shape shape{8, timer.model().shape().classes};
  NamedTensors io{{"images", images}};
  for (DType dtype : {DType::f32, DType::bf16}) {
    const std::vector<double> y = timer.logits(images, dtype);
    io.emplace_back("logits_" + std::string(name_of(dtype)), raw::to(from_vector(y, shape), DType::f32));
  }
  timer.model().set_compute_dtype(DType::f32);
  if (const auto folder = std::filesystem::path(prefix).parent_path(); !folder.empty())
    std::filesystem::create_directories(folder);
  save_model(prefix + ".safetensors", timer.model());
  write_safetensors(prefix + ".io.safetensors", io);
}

}  // namespace occam
