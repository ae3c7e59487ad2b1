#pragma once
#include <string>

#include "core/config.h"

namespace occam {

struct ScheduleConfig {
  std::string name = "cosine";
  double warmup = 0;        // epochs
  double warmup_lr = 1e-6;  // rate of the first step
  double min_lr = 1e-6;

  template <class V>
  void visit(V& v) {
    v("name", name, "cosine to min_lr, or constant after the warm-up", Choices{"cosine", "constant"},
      Shorthand{});
    v("warmup", warmup, "epochs over which the rate rises linearly from warmup_lr", Range::at_least(0));
    v("warmup_lr", warmup_lr, "rate of the first step when there is a warm-up", Range::at_least(0));
    v("min_lr", min_lr, "rate that the cosine ends at", Range::at_least(0));
  }
};

/// Learning rate of step `step` (0 first) of `steps`. The warm-up takes w = round(warmup * steps_per_epoch)
/// steps (at most all), linear from warmup_lr; then min_lr + (lr - min_lr) (1 + cos(pi (step - w) / (steps -
/// w))) / 2 (Loshchilov & Hutter, arXiv 1608.03983, one period), per step.
double learning_rate(const ScheduleConfig& config, double lr, int64_t step, int64_t steps,
                     int64_t steps_per_epoch);

}  // namespace occam
