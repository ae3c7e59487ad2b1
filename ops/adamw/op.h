#pragma once
// Multi-tensor optimiser updates. They write in place, have no gradient and so are plain functions; the op
// table knows each by an entry of its own that returns new tensors (ops/adamw/op.cpp), which the suite
// checks.
//
// Everything that changes from step to step lives in device memory (StepScalars), so that a captured step
// replays and the host never waits.
#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"

namespace occam {

/// One parameter: f32 (f64 on the CPU for tests). `shadow` (bf16 or undefined) receives the new values
/// rounded.
struct UpdateSlot {
  Tensor param, grad, first, second, shadow;  // first, second: moments (sgd: `first` is the momentum)
  double weight_decay = 0;
};

/// The list of what an update works on, kept on the device from step to step and sent anew only when it
/// changed. A captured step has a list of its own, which is sent while the step is recorded: an eager step in
/// between leaves it alone.
class UpdateTable {
 public:
  /// The list of `slots` in device memory, in pieces of at most kernels::kUpdateChunk elements.
  struct List {
    const void* chunks = nullptr;
    int64_t count = 0;
  };
  List of(const std::vector<UpdateSlot>& slots);

 private:
  struct Sent {
    std::vector<uint8_t> bytes;
    Tensor on_device;
  };
  Sent eager_, captured_;
};

/// f32 [4] on the device: learning rate, number of updates made, gradient norm of this step, 1 when it was
/// not finite.
struct StepScalars {
  explicit StepScalars(Device device);
  Tensor values;
  /// Copies the rate to the device; the host does not wait.
  void set_learning_rate(double lr);
};

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
};

/// Norm over all gradients, deterministic, into scalars[2]; scalars[3] = 1 when it is not finite, else 0 and
/// scalars[1] += 1.
void gradient_norm(const std::vector<UpdateSlot>& slots, StepScalars& scalars, UpdateTable& table);

/// AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2, as in PyTorch):
///   g = grad * min(1, clip / (norm + 1e-6));   p -= lr wd p
///   m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) +
///   eps)
/// clip <= 0: no clipping. Skipped whole by the device when the norm was not finite. Call gradient_norm()
/// before.
void adamw_update(const std::vector<UpdateSlot>& slots, const StepScalars& scalars,
                  const AdamWOptions& options, double clip, UpdateTable& table);

/// SGD with momentum as in PyTorch: g += wd p; buf = momentum buf + g; p -= lr buf.
void sgd_update(const std::vector<UpdateSlot>& slots, const StepScalars& scalars, double momentum,
                double clip, UpdateTable& table);

/// average = decay average + (1 - decay) value, for each pair; f32.
void ema_update(const std::vector<Tensor>& averages, const std::vector<Tensor>& values, double decay,
                UpdateTable& table);

/// One update of 1-d tensors as ops that leave their inputs alone, for the suite and the benchmarks.
namespace update_ops {
/// p, g, m, v -> new p, m, v, as the update number `updates` + 1.
std::vector<Tensor> adamw(std::span<const Tensor> in, double lr, double weight_decay, double clip,
                          int64_t updates);
/// p, g, momentum buffer -> new p, buffer
std::vector<Tensor> sgd(std::span<const Tensor> in, double lr, double weight_decay, double momentum,
                        double clip);
Tensor ema(const Tensor& average, const Tensor& value, double decay);
}  // namespace update_ops

}  // namespace occam
