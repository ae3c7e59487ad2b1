#pragma once
// The optimisation loop that training and distillation share: batches in, a loss out, update, average, log,
// state.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "core/config.h"
#include "core/io/json.h"
#include "core/replay.h"
#include "data/loader.h"
#include "nn/ema/ema.h"
#include "nn/module.h"
#include "nn/optim/optimizer.h"
#include "nn/sched/schedule.h"

namespace occam {

/// How a stretch of optimisation goes; the `train:` section holds one, each distillation stage another.
struct LoopConfig {
  OptimConfig optim;
  ScheduleConfig schedule;
  int64_t batch = 128;     // images a step
  int64_t accumulate = 1;  // the batch is computed in this many parts
  double ema = 0;
  int64_t log_every = 50;
  bool capture = true;

  template <class V>
  void visit(V& v) {
    v("optim", optim, "the update rule");
    v("schedule", schedule, "the learning rate over time");
    v("batch", batch, "images a step", Range{1, 1 << 20});
    v("accumulate", accumulate, "compute a step's batch in this many parts, to save memory", Range{1, 4096});
    v("ema", ema, "decay of the exponential moving average of the weights; 0 = none", Range{0, 1});
    v("log_every", log_every, "steps between log lines; a non-finite loss is noticed this much later at most",
      Range{1, 1e9});
    v("capture", capture, "on a GPU: replay the step as a CUDA graph from the third step of a shape on");
  }
};

/// Scalar f32 loss (a mean over the part's images) of a part of a batch.
using LossFn = std::function<Tensor(const Batch&)>;

/// What a log line tells: averages over the steps since the last one.
struct StepLog {
  int64_t step = 0;  // steps done
  double epoch = 0, loss = 0, grad_norm = 0, lr = 0, images_per_s = 0;
};

class TrainLoop {
 public:
  /// `steps` in all; `steps_per_epoch` scales schedules given in epochs. Only parameters that are trainable
  /// now are optimised.
  TrainLoop(Module& model, const LoopConfig& config, int64_t steps, int64_t steps_per_epoch, uint64_t seed);

  int64_t step() const { return step_; }
  int64_t steps() const { return steps_; }
  bool done() const { return step_ >= steps_; }

  /// One step: forward and backward of each part of `batch`, clipping, update, average. Logs through `on_log`
  /// when it is due. Throws Error{non_finite} naming the step when the loss or the gradient norm was not
  /// finite.
  /// On a GPU a step is captured once two of its shape have run, and replayed from then on; `loss` must then
  /// be the same function every time and read nothing of the batch but its tensors.
  void run(const Batch& batch, const LossFn& loss);
  /// The memory that a captured step reads its batch from; null while there is none. A batch that
  /// Loader::next writes there is not copied.
  const Batch* place() const { return fixed_.images ? &fixed_ : nullptr; }
  /// True when the next batch of the same shape will be replayed; why not, else (empty: not tried yet).
  bool captured() const { return replay_.captured(); }
  const std::string& capture_fallback() const { return replay_.fallback(); }
  /// Steps run eagerly while this is off (a profile needs that).
  void set_capture(bool on) { config_.capture = on; }
  std::function<void(const StepLog&)> on_log;
  /// Logs the steps since the last log line, for an end that comes before `steps()`.
  void flush_log();
  /// Throws Error{non_finite} when a step since the last log line was not finite: before weights are judged
  /// or kept.
  void check_finite() const;

  /// Null when config.ema is 0.
  Ema* ema() { return ema_.get(); }

  /// Everything but the model's weights and the data position: optimiser, average, step, running sums, and
  /// the choices made by measurement, which a resumed run repeats.
  void save(const std::filesystem::path& folder, Json& state) const;
  void load(const std::filesystem::path& folder, const Json& state);

 private:
  void require_finite(double loss, double norm) const;
  void step(const Batch& batch, const LossFn& loss);
  void replay(const Batch& batch, const LossFn& loss);

  Module& model_;
  LoopConfig config_;
  int64_t steps_, steps_per_epoch_, step_ = 0;
  Optimizer optimizer_;
  std::unique_ptr<Ema> ema_;
  Tensor loss_sum_;  // f32 [1] on the device: losses since the last log line
  int64_t logged_step_ = 0, images_ = 0;
  double log_time_ = 0;
  Replay replay_;
  Batch fixed_;          // the memory that a captured step reads
  uint64_t places_ = 0;  // of the parameters it uses
  bool told_fallback_ = false;
};

/// Rows [start, start + count) of a batch.
Batch part_of(const Batch& batch, int64_t start, int64_t count);

}  // namespace occam
