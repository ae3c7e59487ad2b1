#pragma once
// AdamW and SGD over a module's trainable parameters.
#include <string>
#include <vector>

#include "core/config.h"
#include "core/io/safetensors.h"
#include "nn/module.h"
#include "ops/adamw/op.h"

namespace occam {

struct OptimConfig {
  std::string name = "adamw";
  double lr = 1e-3;
  double weight_decay = 0.05;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double momentum = 0.9;
  double clip = 0;

  template <class V>
  void visit(V& v) {
    v("name", name, "update rule", Choices{"adamw", "sgd"}, Shorthand{});
    v("lr", lr, "largest learning rate, used as it is: no scaling by batch size", Range::at_least(0));
    v("weight_decay", weight_decay,
      "decoupled for adamw, added to the gradient for sgd; never on biases, norms, tokens and the position "
      "embedding",
      Range::at_least(0));
    v("beta1", beta1, "adamw: decay of the mean of gradients", Range{0, 1});
    v("beta2", beta2, "adamw: decay of the mean of squared gradients", Range{0, 1});
    v("eps", eps, "adamw: added to the root of the second moment", Range::above(0));
    v("momentum", momentum, "sgd: momentum", Range{0, 1});
    v("clip", clip, "largest norm of all gradients together; 0 = no clipping", Range::at_least(0));
  }
};

/// timm's rule: parameters with one axis, and cls_token, dist_token, pos_embed by name, are not decayed.
bool has_weight_decay(const std::string& name, const Shape& shape);

class Optimizer {
 public:
  /// Takes the parameters that are trainable now. Throws Error{usage} when there are none.
  Optimizer(Module& model, const OptimConfig& config);

  /// Clips and updates from the gradients present; parameters without one are left alone. Writes bf16
  /// shadows. On the GPU nothing waits: an update with a non-finite gradient norm is skipped there
  /// (last_step_finite() tells later).
  void step(double lr) {
    set_learning_rate(lr);
    step();
  }
  /// The two halves, for a step that is captured: the rate is set before each replay.
  void set_learning_rate(double lr) { scalars_.set_learning_rate(lr); }
  void step();
  void zero_grad();

  /// Norm of the gradients of the last step before clipping; waits for the device.
  double gradient_norm() const;
  bool last_step_finite() const;

  /// Moments by "<parameter>.first" and ".second", and the device scalars: all that a resumed run needs.
  NamedTensors state() const;
  /// Throws Error{input} naming `source` and the names that are missing or do not fit.
  void load_state(const Safetensors& file);

 private:
  struct Entry {
    std::string name;
    Parameter* parameter;
    Tensor first, second;
    double weight_decay;
  };
  OptimConfig config_;
  std::vector<Entry> entries_;
  StepScalars scalars_;
  UpdateTable table_;
};

}  // namespace occam
