#pragma once
#include "core/io/safetensors.h"
#include "nn/module.h"
#include "ops/adamw/op.h"

namespace occam {

/// Exponential moving average of a module's parameters: after each step, average = d average + (1 - d) value.
/// The average starts as a copy of the values.
class Ema {
 public:
  Ema(Module& model, double decay);
  void update();
  /// Exchanges the model's values with the averages; calling it twice restores them.
  void swap();
  NamedTensors state() const;
  void load_state(const Safetensors& file);

 private:
  Module& model_;
  double decay_;
  NamedTensors averages_;
  UpdateTable table_;
};

/// Evaluates with averages: swaps on construction and back on destruction. Null does nothing.
class UseEma {
 public:
  explicit UseEma(Ema* ema) : ema_(ema) {
    if (ema_) ema_->swap();
  }
  ~UseEma() {
    if (ema_) ema_->swap();
  }
  UseEma(const UseEma&) = delete;
  UseEma& operator=(const UseEma&) = delete;

 private:
  Ema* ema_;
};

}  // namespace occam
