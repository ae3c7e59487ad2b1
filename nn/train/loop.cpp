#include "nn/train/loop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "core/rng.h"

namespace occam {

namespace {
double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

Batch part_of(const Batch& batch, int64_t start, int64_t count) {
  Batch part = batch;
  part.images = raw::slice(batch.images, 0, start, count);
  part.labels = raw::slice(batch.labels, 0, start, count);
  if (batch.targets) part.targets = raw::slice(batch.targets, 0, start, count);
  part.indices.assign(batch.indices.begin() + start, batch.indices.begin() + start + count);
  return part;
}

TrainLoop::TrainLoop(Module& model, const LoopConfig& config, int64_t steps, int64_t steps_per_epoch,
                     uint64_t seed)
    : model_(model),
      config_(config),
      steps_(steps),
      steps_per_epoch_(steps_per_epoch),
      optimizer_(model, config.optim),
      loss_sum_(zeros({1}, {DType::f32, model.device()})) {
  if (config.ema > 0) ema_ = std::make_unique<Ema>(model, config.ema);
  op_random::seed(seed);
}

void TrainLoop::run(const Batch& batch, const LossFn& loss_of) {
  if (log_time_ == 0) log_time_ = now();
  op_random::begin_step(model_.device());
  optimizer_.zero_grad();
  int64_t size = batch.size(), parts = std::min(config_.accumulate, size);
  for (int64_t i = 0, start = 0; i < parts; ++i) {
    int64_t count = size / parts + (i < size % parts);
    Batch part = parts == 1 ? batch : part_of(batch, start, count);
    start += count;
    Tensor loss = loss_of(part);
    // Parts weigh by their images, so that the sum is the mean over the batch.
    double weight = double(count) / double(size);
    backward(loss, full({}, weight, options_of(loss)));
    NoGrad no_grad;
    loss_sum_.add_(raw::reshape(raw::to(detach(loss), DType::f32), {1}), weight);
  }
  double lr = learning_rate(config_.schedule, config_.optim.lr, step_, steps_, steps_per_epoch_);
  optimizer_.step(lr);
  if (ema_) ema_->update();
  ++step_;
  images_ += size;
  if (step_ % config_.log_every == 0 || done()) flush_log();
}

void TrainLoop::require_finite(double loss, double norm) const {
  OCCAM_CHECK(
      std::isfinite(loss) && std::isfinite(norm), ErrorKind::non_finite,
      "the loss became {} and the gradient norm {} between steps {} and {}\n  fix       a smaller optim.lr, "
      "optim.clip=1, a longer schedule.warmup, or precision=f32; data that are not finite do this too",
      loss, norm, logged_step_ + 1, step_);
}

void TrainLoop::check_finite() const {
  if (step_ > logged_step_)
    require_finite(loss_sum_.item() / double(step_ - logged_step_), optimizer_.gradient_norm());
}

void TrainLoop::flush_log() {
  if (step_ == logged_step_) return;
  double time = now();
  StepLog log;
  log.step = step_;
  log.epoch = double(step_) / double(steps_per_epoch_);
  log.loss = loss_sum_.item() / double(step_ - logged_step_);
  log.grad_norm = optimizer_.gradient_norm();
  log.lr = learning_rate(config_.schedule, config_.optim.lr, step_ - 1, steps_, steps_per_epoch_);
  log.images_per_s = double(images_) / std::max(time - log_time_, 1e-9);
  require_finite(log.loss, log.grad_norm);
  loss_sum_.zero_();
  logged_step_ = step_;
  images_ = 0;
  log_time_ = time;
  if (on_log) on_log(log);
}

void TrainLoop::save(const std::filesystem::path& folder, Json& state) const {
  write_safetensors(folder / "optim.safetensors", optimizer_.state());
  if (ema_) write_safetensors(folder / "ema.safetensors", ema_->state());
  state["step"] = step_;
  state["logged_step"] = logged_step_;
  state["loss_sum"] = loss_sum_.item();
  state["seed"] = op_random::current_seed();
}

void TrainLoop::load(const std::filesystem::path& folder, const Json& state) {
  optimizer_.load_state(Safetensors(folder / "optim.safetensors"));
  if (ema_) ema_->load_state(Safetensors(folder / "ema.safetensors"));
  step_ = state.at("step");
  logged_step_ = state.at("logged_step");
  loss_sum_.fill_(state.at("loss_sum").get<double>());
  op_random::seed(state.at("seed"), step_);
  op_random::step_tensor(model_.device());
}

}  // namespace occam
