#include "nn/train/loop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/check.h"
#include "core/choices.h"
#include "core/grad_mode.h"
#include "core/rng.h"
#include "nn/capture.h"

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
      loss_sum_(zeros({1}, {DType::f32, model.device()})),
      replay_(model.device()) {
  if (config.ema > 0) ema_ = std::make_unique<Ema>(model, config.ema);
  op_random::seed(seed);
}

void TrainLoop::run(const Batch& batch, const LossFn& loss_of) {
  if (log_time_ == 0) log_time_ = now();
  optimizer_.set_learning_rate(
      learning_rate(config_.schedule, config_.optim.lr, step_, steps_, steps_per_epoch_));
  if (config_.capture && model_.device().is_cuda())
    replay(batch, loss_of);
  else
    step(batch, loss_of);
  ++step_;
  images_ += batch.size();
  if (step_ % config_.log_every == 0 || done()) flush_log();
}

void TrainLoop::replay(const Batch& batch, const LossFn& loss_of) {
  auto same = [](const Tensor& a, const Tensor& b) {
    return a.defined() == b.defined() && (!a || a.shape() == b.shape());
  };
  const bool fits = same(fixed_.images, batch.images) && same(fixed_.labels, batch.labels) &&
                    same(fixed_.targets, batch.targets);
  // A smaller batch, the last of an epoch, is no reason to forget the recording.
  if (!fits && fixed_.images && fixed_.images.size(0) > batch.size()) return step(batch, loss_of);
  const uint64_t places = parameter_places(model_);
  if (!fits || places != places_ || fixed_.images.dtype() != model_.compute_dtype()) {
    replay_.reset();
    const Device device = model_.device();
    fixed_ = batch;
    fixed_.images = empty(batch.images.shape(), {model_.compute_dtype(), device});
    fixed_.labels = empty_like(batch.labels);
    if (batch.targets) fixed_.targets = empty_like(batch.targets);
    places_ = places;
  }
  auto fill = [](Tensor to, const Tensor& from) {
    if (to && to.data_ptr() != from.data_ptr()) to.copy_(from);  // images: converts as the model would
  };
  {
    NoGrad no_grad;
    fill(fixed_.images, batch.images);
    fill(fixed_.labels, batch.labels);
    fill(fixed_.targets, batch.targets);
  }
  if (!replay_.captured()) optimizer_.zero_grad();  // gradients of eager steps stay out of the recording
  replay_.run([&] { step(fixed_, loss_of); });
  if (!replay_.fallback().empty() && !told_fallback_) {
    told_fallback_ = true;
    std::fprintf(stderr, "steps run eagerly: %s\n", replay_.fallback().c_str());
  }
}

/// All that a step does on the device, but for the learning rate.
void TrainLoop::step(const Batch& batch, const LossFn& loss_of) {
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
  optimizer_.step();
  if (ema_) ema_->update();
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
  state["choices"] = measured_choices(model_.device());
}

void TrainLoop::load(const std::filesystem::path& folder, const Json& state) {
  optimizer_.load_state(Safetensors(folder / "optim.safetensors"));
  if (ema_) ema_->load_state(Safetensors(folder / "ema.safetensors"));
  step_ = state.at("step");
  logged_step_ = state.at("logged_step");
  loss_sum_.fill_(state.at("loss_sum").get<double>());
  op_random::seed(state.at("seed"), step_);
  op_random::step_tensor(model_.device());
  if (!restore_choices(model_.device(), state.value("choices", Json())))
    std::fprintf(
        stderr,
        "warning: the checkpoint has no choices of algorithms for this kind of device and library: the "
        "last bits may differ from a run that was not stopped\n");
}

}  // namespace occam
