#pragma once
// Spans of work (an op's forward or backward, a copy, an update), told to whoever listens on this thread.
// With no listener a span costs a store and a null check.
#include <cstdint>

#include "core/device.h"

namespace occam {

/// What a span of work belongs to.
enum class Phase : uint8_t { forward, backward, recompute, update };
const char* name_of(Phase phase);

/// Least work of a span: FLOPs of its mathematics (a multiply-add is two), bytes read and written once.
struct Work {
  double flops = 0, bytes = 0;
};

/// Hears the spans of the thread that made it, innermost listener first, while it lives.
class Tracer {
 public:
  Tracer();
  virtual ~Tracer();
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;
  /// Work of the kind `name` (a literal) is about to be queued on the device's current stream. Spans nest.
  virtual void begin(const char* name, Phase phase, Device device) = 0;
  /// The innermost open span has been queued whole.
  virtual void end(const Work& work) noexcept = 0;

 private:
  friend class TraceSpan;
  Tracer* previous_;
};

class TraceSpan {
 public:
  /// `name` must be a literal.
  TraceSpan(const char* name, Device device) : TraceSpan(name, device, current_phase) {}
  TraceSpan(const char* name, Device device, Phase phase) : outer_(current_name) {
    current_name = name;
    if (listener != nullptr) [[unlikely]]
      open(phase, device);
  }
  ~TraceSpan() {
    if (open_) [[unlikely]]
      close();
    current_name = outer_;
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

  /// True when somebody listens, so that work is worth being told.
  explicit operator bool() const { return open_; }
  void set_work(const Work& work) { work_ = work; }
  /// True while somebody listens on this thread.
  static bool heard() { return listener != nullptr; }
  /// Name of the innermost open span of this thread; null outside all.
  static const char* name() { return current_name; }

 private:
  friend class Tracer;
  friend class PhaseGuard;
  void open(Phase phase, Device device);
  void close() noexcept;

  static thread_local constinit Tracer* listener;
  static thread_local constinit const char* current_name;
  static thread_local constinit Phase current_phase;

  const char* outer_;
  Work work_;
  bool open_ = false;
};

/// Spans opened on this thread while it lives belong to `phase`, unless they say otherwise.
class PhaseGuard {
 public:
  explicit PhaseGuard(Phase phase) : outer_(TraceSpan::current_phase) { TraceSpan::current_phase = phase; }
  ~PhaseGuard() { TraceSpan::current_phase = outer_; }
  PhaseGuard(const PhaseGuard&) = delete;
  PhaseGuard& operator=(const PhaseGuard&) = delete;

 private:
  Phase outer_;
};

}  // namespace occam
