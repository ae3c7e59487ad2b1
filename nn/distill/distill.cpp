#include "nn/distill/distill.h"

#include <algorithm>
#include <chrono>

#include "core/check.h"
#include "core/grad_mode.h"
#include "nn/train/loss.h"
#include "ops/cross_entropy/op.h"
#include "ops/distance/op.h"
#include "ops/elementwise/op.h"

namespace occam {

std::unique_ptr<VisionTransformer> make_student(const ModelConfig& teacher, const DistillRun& run,
                                                uint64_t seed, Device device, DType compute_dtype) {
  std::unique_ptr<VisionTransformer> student = make_model(teacher, seed);
  if (!run.no_op())
    for (int64_t b : run.blocks) student->replace_mixer(b, run.mixer, seed);
  student->to(device);
  student->set_compute_dtype(compute_dtype);
  return student;
}

bool has_taps(VisionTransformer& student, const DistillRun& run) {
  return !run.no_op() && std::all_of(run.blocks.begin(), run.blocks.end(),
                                     [&](int64_t b) { return student.block(b).mixer().has_tap(); });
}

StageSteps steps_of(const DistillConfig& config, bool taps, int64_t batches_per_epoch1,
                    int64_t batches_per_epoch2) {
  StageSteps s{config.stage1.steps_for(batches_per_epoch1), config.stage2.steps_for(batches_per_epoch2)};
  if (!taps) s = {0, s.stage1 + s.stage2};
  return s;
}

Distillation::Distillation(const DistillConfig& config, const DistillRun& run, VisionTransformer& teacher,
                           VisionTransformer& student)
    : config_(config), run_(run), teacher_(teacher), student_(student) {
  teacher_.eval();
  teacher_.freeze();
}

void Distillation::enter(int stage) {
  stage_ = stage;
  teacher_taps_.reset();
  student_taps_.reset();
  if (stage != 1) {
    student_.unfreeze();
    return;
  }
  student_.freeze();
  for (int64_t b : run_.blocks) {
    std::string mixer = fmt::format("blocks.{}.attn.", b);
    student_.unfreeze(mixer + "*");
    if (student_.block(b).mixer().proj() != nullptr) student_.freeze(mixer + "proj.*");
  }
  if (config_.match != "none" && config_.match_weight > 0) {
    teacher_taps_ = std::make_unique<MixerTaps>(teacher_, run_.blocks);
    student_taps_ = std::make_unique<MixerTaps>(student_, run_.blocks);
  }
}

Tensor Distillation::match_term(const Tensor& a, const Tensor& b) const {
  return config_.match == "cosine" ? cosine_distance(a, b) : mse(a, b);
}

Tensor Distillation::loss(const Batch& batch) {
  Tensor images = raw::to(batch.images, student_.compute_dtype()), total;
  auto add_term = [&](const Tensor& term, double weight) {
    Tensor weighted = weight == 1 ? term : mul_scalar(term, weight);
    total = total ? add(total, weighted) : weighted;
  };
  const StageConfig& stage = stage_ == 1 ? config_.stage1 : config_.stage2;
  bool matching = teacher_taps_ != nullptr, forced = matching && config_.input == "teacher";
  Tensor teacher_logits;
  if (matching || config_.kd_weight > 0) {
    NoGrad no_grad;
    teacher_logits = teacher_(images);
  }
  std::vector<Tensor> logits;
  if (!forced || config_.label_weight > 0 || config_.kd_weight > 0) logits = student_.logits(images);
  if (config_.label_weight > 0)
    add_term(label_loss(logits, batch, stage.label_smoothing), config_.label_weight);
  if (config_.kd_weight > 0)
    for (const Tensor& head : logits)
      add_term(kl_div(head, teacher_logits, config_.kd_temperature),
               config_.kd_weight / double(logits.size()));
  if (matching)
    for (int64_t b : run_.blocks) {
      Tensor student_heads =
          forced ? student_.block(b).mixer().heads(teacher_taps_->input(b)) : student_taps_->heads(b);
      add_term(match_term(student_heads, teacher_taps_->heads(b)), config_.match_weight);
    }
  if (matching) teacher_taps_->clear(), student_taps_->clear();
  return total;
}

std::map<int64_t, double> match_errors(VisionTransformer& teacher, VisionTransformer& student,
                                       const std::vector<int64_t>& blocks, Loader& loader,
                                       const std::function<bool()>& stop) {
  NoGrad no_grad;
  bool training = student.training();
  teacher.eval();
  student.eval();
  MixerTaps taught(teacher, blocks), learnt(student, blocks);
  std::map<int64_t, double> errors, sizes;
  while (!(stop && stop())) {
    std::optional<Batch> batch = loader.next();
    if (!batch) break;
    Tensor images = raw::to(batch->images, student.compute_dtype());
    teacher(images);
    student(images);
    for (int64_t b : blocks) {
      Tensor y = raw::to(taught.heads(b), DType::f32), s = raw::to(learnt.heads(b), DType::f32);
      double count = double(y.numel());
      errors[b] += mse(s, y).item() * count;
      sizes[b] += mse(y, zeros_like(y)).item() * count;
    }
  }
  student.train(training);
  for (auto& [b, error] : errors) error /= sizes[b];
  return errors;
}

double latency_ms(VisionTransformer& model, int repeats) {
  NoGrad no_grad;
  bool training = model.training();
  model.eval();
  const VitShape& s = model.shape();
  Tensor image = raw::to(zeros({1, s.channels, s.image_size, s.image_size}, {DType::f32, model.device()}),
                         model.compute_dtype());
  std::vector<double> times;
  for (int i = -10; i < repeats; ++i) {
    synchronize(model.device());
    auto start = std::chrono::steady_clock::now();
    model(image);
    synchronize(model.device());
    if (i >= 0)
      times.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  model.train(training);
  auto middle = times.begin() + std::ptrdiff_t(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

}  // namespace occam
