#pragma once
// Where the time of a step goes: every span of work (core/trace.h) with its time on the device and on the
// host, the work it had to do and the place it was called from.
//
//   Profiler p(device);
//   { auto t = p.time(); step(); }    // as it runs when nobody looks: the step's wall time
//   { auto r = p.record(); step(); }  // its spans; both may be repeated, results are means
//   to_text(p.table(Profiler::By::op, ceilings));
//
// On a GPU a span's time lies between two CUDA events. A host that is slower than the device would put its
// own delays into that time, so while a step is recorded the device is held back whenever it has nearly
// caught up with the host, outside all spans; what is recorded is the device's own time. The cost of an event
// is measured and taken off. On the CPU times are wall-clock times.
//
// Steps run eagerly: a step that is captured into a CUDA graph, or replayed from one, has no spans to record.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/report/table.h"
#include "core/trace.h"

namespace occam {

class Profiler {
 public:
  explicit Profiler(Device device);
  ~Profiler();
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;

  class Part {
   public:
    virtual ~Part() = default;
  };
  /// Records this thread's spans until the result is destroyed: one step. Waits for the device at both ends.
  /// Throws Error{usage} when the device's stream is being captured; so does a span inside a capture.
  [[nodiscard]] std::unique_ptr<Part> record();
  /// The wall time of one step, without spans.
  [[nodiscard]] std::unique_ptr<Part> time();
  /// Times `step` `steps` times, then records it as often.
  void run(const std::function<void()>& step, int64_t steps);

  struct Span {
    const char* name = "";
    Phase phase = Phase::forward;
    std::string path;     // of modules
    int64_t parent = -1;  // index of the span around it
    Work work;
    double start = 0, seconds = 0, self = 0;                 // device; self is without inner spans
    double host_start = 0, host_seconds = 0, host_self = 0;  // from the beginning of the step
  };
  /// One recorded step.
  struct Step {
    std::vector<Span> spans;  // in order of their beginning
    double seconds = 0;       // of the device, holds and events taken off
    double host_seconds = 0;
  };
  const std::vector<Step>& steps() const { return steps_; }

  /// Means a step. `host_s` is the time until the step's work was queued, `wall_s` until it was done; both as
  /// timed, or as recorded when nothing was timed.
  struct Totals {
    double device_s = 0, wall_s = 0, host_s = 0, flops = 0, bytes = 0;
    /// Share of the step in which the device waits for the host.
    double idle() const;
  };
  Totals totals() const;

  /// What the device reaches at best, a second; 0 where unknown.
  struct Ceilings {
    double flops = 0, bytes = 0;
  };
  /// Spans that make one row: those of an op, of an op in one place of a block ("blocks.*.mlp.fc1"), or of an
  /// op in one module.
  enum class By : uint8_t { op, place, module };
  struct Row {
    std::string name, place;
    Phase phase = Phase::forward;
    double calls = 0, seconds = 0, host_seconds = 0;  // means a step
    Work work;
  };
  /// Longest first. The last, "other", is the step's time outside all spans, so that the rows sum up to it.
  std::vector<Row> rows(By by) const;
  Table table(By by, const Ceilings& ceilings) const;
  /// Step, device and host time and idle share in a line or two.
  std::string summary() const;
  /// Tables by op and by place, as Markdown.
  std::string markdown(const Ceilings& ceilings) const;
  /// The recorded steps for chrome://tracing or ui.perfetto.dev, a track for the device and one for the host.
  void write_trace(const std::filesystem::path& file) const;

 private:
  class Recording;
  class Timing;
  struct Clock;

  Device device_;
  std::unique_ptr<Clock> clock_;
  std::vector<Step> steps_;
  std::vector<std::pair<double, double>> timed_;  // wall, host
};

}  // namespace occam
