#include "nn/sched/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace occam {

double learning_rate(const ScheduleConfig& config, double lr, int64_t step, int64_t steps,
                     int64_t steps_per_epoch) {
  auto warmup = std::min(int64_t(std::llround(config.warmup * double(steps_per_epoch))), steps);
  if (step < warmup) return config.warmup_lr + (lr - config.warmup_lr) * double(step) / double(warmup);
  if (config.name == "constant") return lr;
  double done = double(step - warmup) / double(std::max<int64_t>(steps - warmup, 1));
  double floor = std::min(config.min_lr, lr);
  return floor + (lr - floor) * 0.5 * (1 + std::cos(std::numbers::pi * done));
}

}  // namespace occam
