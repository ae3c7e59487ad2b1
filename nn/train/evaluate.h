#pragma once
// One pass over a data set: accuracy, loss and, on request, logits.
#include <cstdint>
#include <functional>
#include <vector>

#include "data/loader.h"
#include "nn/module.h"

namespace occam {

struct Evaluation {
  int64_t images = 0;
  double top1 = 0, top5 = 0;  // fractions in [0, 1]; top5 is over min(5, classes)
  double loss = 0;            // mean cross-entropy with hard labels
  std::vector<int64_t> class_images, class_correct;
  double images_per_s = 0;  // data loading included; see Throughput
  Tensor logits, labels;    // f32 [images, classes], i64 [images] on the CPU, when asked for
};

struct EvaluateOptions {
  bool keep_logits = false;
  /// Called after each batch with the number of images done.
  std::function<void(int64_t images)> progress;
  /// Asked before each batch; true ends the pass early (the result covers the images done).
  std::function<bool()> stop;
};

/// Runs `model` in evaluation mode without gradients (and puts its mode back). Labels must be below the
/// number of logits. Throws Error{non_finite} naming the batch when logits are not finite.
Evaluation evaluate(Module& model, Loader& loader, const EvaluateOptions& options = {});

}  // namespace occam
