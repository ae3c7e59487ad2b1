#include "nn/train/evaluate.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/grad_mode.h"
#include "nn/train/throughput.h"

namespace occam {

namespace {

/// Adds one row: -log softmax at the label, and the label's rank (ties count against it: a constant output is
/// not right).
void score(const float* row, int64_t classes, int64_t label, Evaluation& e) {
  float largest = *std::max_element(row, row + classes);
  double sum = 0;
  int64_t before = 0;
  for (int64_t k = 0; k < classes; ++k) {
    sum += std::exp(double(row[k]) - largest);
    before += k != label && row[k] >= row[label];
  }
  e.loss += std::log(sum) + largest - row[label];
  e.top1 += before == 0;
  e.top5 += before < std::min<int64_t>(5, classes);
  e.class_correct[size_t(label)] += before == 0;
  ++e.class_images[size_t(label)];
}

class EvaluationMode {
 public:
  explicit EvaluationMode(Module& model) : model_(model), training_(model.training()) { model.eval(); }
  ~EvaluationMode() { model_.train(training_); }

 private:
  Module& model_;
  bool training_;
};

}  // namespace

Evaluation evaluate(Module& model, Loader& loader, const EvaluateOptions& options) {
  NoGrad no_grad;
  EvaluationMode mode(model);
  Evaluation e;
  std::vector<float> kept;
  std::vector<int64_t> kept_labels;
  int64_t classes = 0;
  Throughput throughput;
  while (!(options.stop && options.stop())) {
    std::optional<Batch> batch = loader.next();
    if (!batch) break;
    Tensor logits = model(raw::to(batch->images, model.compute_dtype()));
    std::vector<float> rows = logits.to_vector<float>();
    std::vector<int64_t> labels = batch->labels.to_vector<int64_t>();
    classes = logits.size(1);
    e.class_images.resize(size_t(classes));
    e.class_correct.resize(size_t(classes));
    for (size_t i = 0; i < labels.size(); ++i) {
      const float* row = rows.data() + int64_t(i) * classes;
      OCCAM_CHECK(labels[i] >= 0 && labels[i] < classes, ErrorKind::input,
                  "image {} has label {}, the model has {} classes", batch->indices[i], labels[i], classes);
      OCCAM_CHECK(
          std::all_of(row, row + classes, [](float v) { return std::isfinite(v); }), ErrorKind::non_finite,
          "the model's output for image {} is not finite\n  fix       use other weights, or precision=f32",
          batch->indices[i]);
      score(row, classes, labels[i], e);
    }
    e.images += int64_t(labels.size());
    if (options.keep_logits) {
      kept.insert(kept.end(), rows.begin(), rows.end());
      kept_labels.insert(kept_labels.end(), labels.begin(), labels.end());
    }
    throughput.update(e.images);
    if (options.progress) options.progress(e.images);
  }
  if (e.images == 0 && options.stop && options.stop()) return e;
  OCCAM_CHECK(e.images > 0, ErrorKind::input, "no image could be evaluated: {}",
              loader.skipped().empty() ? "there is none" : loader.skipped().begin()->second);
  double n = double(e.images);
  e.top1 /= n, e.top5 /= n, e.loss /= n;
  e.images_per_s = throughput.images_per_s();
  if (options.keep_logits) {
    e.logits = from_vector(kept, {e.images, classes});
    e.labels = from_vector(kept_labels);
  }
  return e;
}

}  // namespace occam
