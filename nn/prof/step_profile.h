#pragma once
// The profile of a training run: some of its own steps, timed, recorded and weighed.
#include <filesystem>
#include <functional>
#include <optional>

#include "core/profiler.h"
#include "nn/prof/memory.h"

namespace occam {

/// Steps given to run() in turn: warm-up, one whose memory is watched, `steps` that are timed, `steps` that
/// are recorded. They do what they would do without. They must not be captured into a CUDA graph.
class StepProfile {
 public:
  /// `state`: see optimizer_bytes().
  StepProfile(Module& model, int64_t state, int64_t steps, int64_t warm_up = 5);
  StepProfile(const StepProfile&) = delete;
  StepProfile& operator=(const StepProfile&) = delete;

  void run(const std::function<void()>& step);
  /// Steps that it takes in all.
  int64_t needed() const { return warm_up_ + 1 + 2 * steps_; }
  /// They have all run; run() then just calls.
  bool done() const { return at_ >= needed(); }
  int64_t recorded() const { return int64_t(profiler_.steps().size()); }

  const Profiler& profiler() const { return profiler_; }
  const MemoryReport& memory() const { return memory_; }
  /// Tables by op and by place and the memory report.
  std::string markdown() const;
  /// profile.md and trace.json.
  void write(const std::filesystem::path& folder) const;

 private:
  Module& model_;
  int64_t state_, steps_, warm_up_, at_ = 0;
  Profiler profiler_;
  MemoryReport memory_;
};

}  // namespace occam
