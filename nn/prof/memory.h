#pragma once
// Where the memory of a training step goes.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>

#include "core/memory_watch.h"
#include "core/report/table.h"
#include "nn/module.h"
#include "nn/optim/optimizer.h"

namespace occam {

/// All in bytes.
struct MemoryReport {
  int64_t peak = 0;        // of live tensors during the step, those of before it included
  int64_t parameters = 0;  // masters and shadows
  int64_t state = 0;       // of the optimiser and of the moving average
  int64_t gradients = 0;   // of all trainable parameters
  int64_t saved = 0;       // what the graph holds for backward when a forward pass has ended, the most of any
  MemoryWatch::Peak at_peak;  // blocks merged

  /// No order of work on this graph needs less: parameters and state always, what is saved when backward
  /// begins, the gradients when it ends.
  int64_t lower_bound() const { return parameters + state + std::max(saved, gradients); }
  /// The parts and how far the peak is above the bound, in a few lines.
  std::string summary() const;
  /// The `count` largest kinds of tensors at the peak, and the rest.
  Table largest(size_t count = 12) const;
};

/// Bytes that an optimiser and a moving average keep for a model's trainable parameters.
int64_t optimizer_bytes(const Module& model, const OptimConfig& config, bool average);

/// Runs `step` once and watches the model's device. `state` as of optimizer_bytes().
MemoryReport measure_memory(Module& model, int64_t state, const std::function<void()>& step);

}  // namespace occam
