#include "core/trace.h"

namespace occam {

thread_local constinit Tracer* TraceSpan::listener = nullptr;
thread_local constinit const char* TraceSpan::current_name = nullptr;
thread_local constinit Phase TraceSpan::current_phase = Phase::forward;

const char* name_of(Phase phase) {
  switch (phase) {
    case Phase::forward:
      return "forward";
    case Phase::backward:
      return "backward";
    case Phase::recompute:
      return "recompute";
    case Phase::update:
      return "update";
  }
  return "";
}

Tracer::Tracer() : previous_(TraceSpan::listener) { TraceSpan::listener = this; }
Tracer::~Tracer() { TraceSpan::listener = previous_; }

void TraceSpan::open(Phase phase, Device device) {
  try {
    for (Tracer* t = listener; t != nullptr; t = t->previous_) t->begin(current_name, phase, device);
  } catch (...) {
    current_name = outer_;  // no destructor runs after a constructor that threw
    throw;
  }
  open_ = true;
}

void TraceSpan::close() noexcept {
  for (Tracer* t = listener; t != nullptr; t = t->previous_) t->end(work_);
}

}  // namespace occam
