#include "core/profiler.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "core/check.h"
#include "core/scope.h"
#include "core/stream.h"
#if OCCAM_CUDA
#include "core/cuda/backend.h"
#include "core/cuda/timer.h"
#endif

namespace occam {

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The device may come this many marks near to the host before it is held back.
[[maybe_unused]] constexpr int64_t kAhead = 24;
/// Holds are as long as the host takes for twice as many marks, within these bounds.
[[maybe_unused]] constexpr double kLeastHold = 2e-3, kMostHold = 50e-3;

constexpr std::string_view kBackward = " (backward)";

std::string module_path() {
  std::string path = Scope::path();
  for (size_t at; (at = path.find(kBackward)) != std::string::npos;) path.erase(at, kBackward.size());
  return path;
}

}  // namespace

/// Points in time on the device: CUDA events, or on the CPU the host's clock.
struct Profiler::Clock {
  explicit Clock(Device device) : device(device) {}

  void refuse_capture() const {
#if OCCAM_CUDA
    OCCAM_CHECK(!device.is_cuda() || !cuda::is_capturing(current_stream(device).handle), ErrorKind::usage,
                "profiler: the step is being captured into a CUDA graph, where single ops have no time of "
                "their own; profile it without capture");
#endif
  }
#if OCCAM_CUDA
  int64_t mark() {
    host.push_back(now());
    return device.is_cuda() ? marks.add(current_stream(device).handle) : int64_t(host.size()) - 1;
  }
  /// Lets the host get ahead when the device has nearly caught up.
  void keep_ahead() {
    if (!device.is_cuda()) return;
    const int64_t after_hold = holds.empty() ? 0 : holds.back().second, old = marks.count() - kAhead;
    if (old <= after_hold ? !holds.empty() && !marks.passed(after_hold) : !marks.passed(old)) return;
    const int64_t recent = std::min(marks.count(), kAhead);
    const double pace = recent > 0 ? (now() - host[host.size() - size_t(recent)]) / double(recent) : 0;
    const int64_t from = mark();
    cuda::hold_stream(current_stream(device).handle,
                      std::clamp(2 * double(kAhead) * pace, kLeastHold, kMostHold));
    holds.emplace_back(from, mark());
  }
  double seconds(int64_t from, int64_t to) const {
    return device.is_cuda() ? marks.seconds(from, to) : host[size_t(to)] - host[size_t(from)];
  }
  /// Seconds between two marks with nothing between them.
  double empty_span() {
    if (!device.is_cuda()) return 0;
    constexpr int kTries = 33;
    marks.clear();
    cuda::hold_stream(current_stream(device).handle, kLeastHold);
    for (int i = 0; i < kTries; ++i) mark();
    std::vector<double> times;
    for (int i = 1; i < kTries; ++i) times.push_back(seconds(i - 1, i));
    std::nth_element(times.begin(), times.begin() + kTries / 2, times.end());
    return times[kTries / 2];
  }
  void clear() { marks.clear(), host.clear(), holds.clear(); }
  cuda::Marks marks;
#else
  int64_t mark() { return host.push_back(now()), int64_t(host.size()) - 1; }
  void keep_ahead() {}
  double seconds(int64_t from, int64_t to) const { return host[size_t(to)] - host[size_t(from)]; }
  double empty_span() { return 0; }
  void clear() { host.clear(), holds.clear(); }
#endif
  Device device;
  std::vector<double> host;
  std::vector<std::pair<int64_t, int64_t>> holds;
};

class Profiler::Recording final : public Part, private Tracer {
 public:
  explicit Recording(Profiler& p) : p_(p), clock_(*p.clock_) {
    synchronize(p.device_);
    mark_s_ = clock_.empty_span();
    synchronize(p.device_);
    clock_.clear();
    host_start_ = now();
    clock_.keep_ahead();
    first_ = clock_.mark();
  }

  ~Recording() override {
    try {
      finish();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "occam: a recorded step is lost: %s\n", e.what());
    }
  }

 private:
  struct Open {
    int64_t span, from;  // index and mark
  };
  struct Marked {
    int64_t from = 0, to = 0;
  };

  void begin(const char* name, Phase phase, Device device) override {
    if (device != p_.device_) {
      open_.push_back({-1, 0});
      return;
    }
    clock_.refuse_capture();
    if (std::none_of(open_.begin(), open_.end(), [](const Open& o) { return o.span >= 0; }))
      clock_.keep_ahead();
    Span span{name, phase, module_path()};
    if (phase == Phase::backward && span.path == name) span.path.clear();  // an op outside all modules
    for (auto o = open_.rbegin(); o != open_.rend() && span.parent < 0; ++o) span.parent = o->span;
    span.host_start = now() - host_start_;
    const int64_t from = clock_.mark();
    open_.push_back({int64_t(step_.spans.size()), from});
    step_.spans.push_back(std::move(span));
    marked_.push_back({from, from});
  }

  void end(const Work& work) noexcept override try {
    const Open o = open_.back();
    open_.pop_back();
    if (o.span < 0) return;
    Span& span = step_.spans[size_t(o.span)];
    span.work = work;
    span.host_seconds = now() - host_start_ - span.host_start;
    marked_[size_t(o.span)].to = clock_.mark();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "occam: the end of a span is lost: %s\n", e.what());
  }

  void finish() {
    OCCAM_CHECK(open_.empty(), ErrorKind::internal, "profiler: the recording ended inside a span");
    const int64_t last = clock_.mark();
    step_.host_seconds = now() - host_start_;
    synchronize(p_.device_);
    // Time of the device from the first mark on, without holds.
    double held = 0;
    size_t hold = 0;
    auto at = [&](int64_t mark) {
      while (hold < clock_.holds.size() && clock_.holds[hold].second <= mark) {
        if (clock_.holds[hold].first >= first_)
          held += clock_.seconds(clock_.holds[hold].first, clock_.holds[hold].second);
        ++hold;
      }
      return clock_.seconds(first_, mark) - held;
    };
    std::vector<int64_t> inner(step_.spans.size());
    for (size_t i = 0; i < step_.spans.size(); ++i) {
      Span& s = step_.spans[i];
      s.start = at(marked_[i].from);
      s.self = s.seconds = clock_.seconds(marked_[i].from, marked_[i].to);
      s.host_self += s.host_seconds;
      if (s.parent < 0) continue;
      Span& parent = step_.spans[size_t(s.parent)];
      parent.self -= s.seconds, parent.host_self -= s.host_seconds;
      ++inner[size_t(s.parent)];
    }
    for (size_t i = 0; i < step_.spans.size(); ++i)
      step_.spans[i].self = std::max(0.0, step_.spans[i].self - mark_s_ * double(1 + inner[i]));
    const auto holds = std::count_if(clock_.holds.begin(), clock_.holds.end(),
                                     [&](const auto& hold) { return hold.first >= first_; });
    const double intervals = double(2 * int64_t(step_.spans.size()) + holds + 1);
    step_.seconds = std::max(0.0, at(last) - mark_s_ * intervals);
    p_.steps_.push_back(std::move(step_));
  }

  Profiler& p_;
  Clock& clock_;
  double mark_s_ = 0, host_start_ = 0;
  int64_t first_ = 0;
  Step step_;
  std::vector<Marked> marked_;  // by span
  std::vector<Open> open_;
};

class Profiler::Timing final : public Part {
 public:
  explicit Timing(Profiler& p) : p_(p) {
    synchronize(p.device_);
    start_ = now();
  }
  ~Timing() override {
    const double queued = now();
    try {
      synchronize(p_.device_);
    } catch (const std::exception& e) {
      std::fprintf(stderr, "occam: a timed step is lost: %s\n", e.what());
      return;
    }
    p_.timed_.emplace_back(now() - start_, queued - start_);
  }

 private:
  Profiler& p_;
  double start_ = 0;
};

Profiler::Profiler(Device device) : device_(device), clock_(std::make_unique<Clock>(device)) {}
Profiler::~Profiler() = default;

std::unique_ptr<Profiler::Part> Profiler::record() {
  clock_->refuse_capture();
  return std::make_unique<Recording>(*this);
}

std::unique_ptr<Profiler::Part> Profiler::time() {
  clock_->refuse_capture();
  return std::make_unique<Timing>(*this);
}

void Profiler::run(const std::function<void()>& step, int64_t steps) {
  for (int64_t i = 0; i < steps; ++i) {
    auto timing = time();
    step();
  }
  for (int64_t i = 0; i < steps; ++i) {
    auto recording = record();
    step();
  }
}

double Profiler::Totals::idle() const { return wall_s > 0 ? std::max(0.0, 1 - device_s / wall_s) : 0; }

Profiler::Totals Profiler::totals() const {
  Totals t;
  const double n = double(std::max<size_t>(steps_.size(), 1));
  for (const Step& step : steps_) {
    t.device_s += step.seconds / n;
    t.host_s += step.host_seconds / n;
    for (const Span& s : step.spans) t.flops += s.work.flops / n, t.bytes += s.work.bytes / n;
  }
  t.wall_s = std::max(t.device_s, t.host_s);
  if (timed_.empty()) return t;
  t.wall_s = t.host_s = 0;
  for (auto [wall, host] : timed_)
    t.wall_s += wall / double(timed_.size()), t.host_s += host / double(timed_.size());
  return t;
}

}  // namespace occam
