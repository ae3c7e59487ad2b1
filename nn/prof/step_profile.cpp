#include "nn/prof/step_profile.h"

#include "core/io/atomic_file.h"
#include "nn/prof/ceilings.h"

namespace occam {

StepProfile::StepProfile(Module& model, int64_t state, int64_t steps, int64_t warm_up)
    : model_(model), state_(state), steps_(steps), warm_up_(warm_up), profiler_(model.device()) {}

void StepProfile::run(const std::function<void()>& step) {
  const int64_t at = done() ? -1 : at_++ - warm_up_;
  if (at < 0) return step();
  if (at == 0) {
    memory_ = measure_memory(model_, state_, step);
    return;
  }
  std::unique_ptr<Profiler::Part> part = at <= steps_ ? profiler_.time() : profiler_.record();
  step();
}

std::string StepProfile::markdown() const {
  const DeviceCeilings c = measured_ceilings(model_.device(), model_.compute_dtype());
  return profiler_.markdown({c.flops, c.bytes}) + "\n## Memory\n\n" + memory_.summary() +
         ".\n\nLargest at the peak:\n\n" + to_markdown(memory_.largest());
}

void StepProfile::write(const std::filesystem::path& folder) const {
  write_file_atomic(folder / "profile.md", markdown());
  profiler_.write_trace(folder / "trace.json");
}

}  // namespace occam
