#pragma once
// Teacher and student: surgery, what each stage trains and for what, and how near they are.
#include <functional>
#include <map>
#include <memory>

#include "nn/distill/plan.h"
#include "nn/vit/taps.h"
#include "nn/vit/vit.h"

namespace occam {

/// The teacher with the run's mixers in place; output projections keep their values, the rest of a new mixer
/// gets values from `seed`. `teacher` must be the settings that made the teacher. In the teacher's mode,
/// device and compute dtype.
std::unique_ptr<VisionTransformer> make_student(const ModelConfig& teacher, const DistillRun& run,
                                                uint64_t seed, Device device, DType compute_dtype);

/// Do all new mixers have head outputs to match? False for identity and no_op: they have no stage 1.
bool has_taps(VisionTransformer& student, const DistillRun& run);

/// Steps of the two stages. Runs without taps take those of stage 1 in stage 2, so that all runs take as many
/// (method.md is silent; the comparison needs it).
struct StageSteps {
  int64_t stage1 = 0, stage2 = 0;
};
StageSteps steps_of(const DistillConfig& config, bool taps, int64_t batches_per_epoch1,
                    int64_t batches_per_epoch2);

/// One run's losses.
class Distillation {
 public:
  /// Both models outlive it. The teacher is put into evaluation mode.
  Distillation(const DistillConfig& config, const DistillRun& run, VisionTransformer& teacher,
               VisionTransformer& student);

  /// 1: only the new modules are trainable, without their output projection. 2: everything is.
  void enter(int stage);
  /// Stage 1: match_weight * sum over blocks of the distance between head outputs + label and kd terms.
  /// With input=teacher the new modules are given what the teacher's mixers got, and the student's own
  /// forward runs only when the other terms have weight. Stage 2: the label and kd terms.
  Tensor loss(const Batch& batch);

 private:
  Tensor match_term(const Tensor& a, const Tensor& b) const;

  const DistillConfig& config_;
  const DistillRun& run_;
  VisionTransformer &teacher_, &student_;
  int stage_ = 2;
  std::unique_ptr<MixerTaps> teacher_taps_, student_taps_;
};

/// |Y_student - Y_teacher|^2 / |Y_teacher|^2 of the head outputs over the loader's images, by block; each
/// model on its own activations, in evaluation mode.
std::map<int64_t, double> match_errors(VisionTransformer& teacher, VisionTransformer& student,
                                       const std::vector<int64_t>& blocks, Loader& loader,
                                       const std::function<bool()>& stop = {});

/// Median time of one forward of one image, in milliseconds, over `repeats` after a warm-up.
double latency_ms(VisionTransformer& model, int repeats = 50);

}  // namespace occam
