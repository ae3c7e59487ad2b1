#pragma once
// Times of a whole model: inference, a training step, a profile of its attention, a step of distillation.
#include <filesystem>
#include <optional>

#include "apps/bench/timing.h"
#include "core/io/json.h"
#include "data/config.h"
#include "nn/train/loop.h"
#include "nn/vit/model.h"

namespace occam {

struct ModelJob {
  ModelConfig model;
  std::string mode = "infer";  // infer, train, profile, distill
  int64_t batch = 1;
  std::string precision = "f32";
  Device device;
  bool order_metrics = true;       // profile: Gini, top-k and p-mass too
  std::string mixer = "bilstm";    // distill: what takes attention's place in every block
  std::optional<DataConfig> data;  // train: batches of the loader; unset: one batch that is on the device
  LoopConfig loop;                 // train, distill; `batch` is set from the above
  double label_smoothing = 0.1;
  bool tiny = false;  // for tests: see ceilings()
  /// So many steps are profiled once the step has been timed, into this folder: see nn/prof/step_profile.h.
  int64_t profile_steps = 0;
  std::filesystem::path profile_folder;
};

/// One line with the keys of torch_bench.py (what, model, B, ms, img_s, mfu_tflops, peak_gb) and more: see
/// README.md. First the outputs in the job's precision are held against those in f32; throws
/// Error{non_finite} when they differ by more than roundings explain.
Json time_model(const ModelJob& job, const TimingOptions& options);

/// {ms, ms_low, ms_high, samples_ms}
Json json_of(const Timing& timing);
double peak_gb(Device device);

/// Writes PREFIX.safetensors, a model with random weights (biases and scores of attention far from 0, so that
/// nothing is hidden by an initialisation), and PREFIX.io.safetensors: images, logits_f32, logits_bf16 or f32
/// again. For another implementation to compute the same.
void write_agreement(const ModelConfig& model, Device device, const std::string& prefix);

}  // namespace occam
