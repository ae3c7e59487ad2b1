#include "core/replay.h"

#include "core/allocator.h"
#include "core/check.h"
#include "core/stream.h"
#include "core/trace.h"
#if OCCAM_CUDA
#include "core/cuda/capture.h"
#else
namespace occam::cuda {
class Graph {};
}  // namespace occam::cuda
#endif

namespace occam {

Replay::Replay(Device device) : device_(device) {}
Replay::~Replay() = default;

void Replay::reset() {
  graph_.reset();
  runs_ = 0;
  fallback_.clear();
}

#if OCCAM_CUDA
bool Replay::captured() const { return graph_ && graph_->captured(); }
int64_t Replay::nodes() const { return captured() ? graph_->nodes() : 0; }
int64_t Replay::bytes() const { return captured() ? graph_->pool_bytes() : 0; }

void Replay::run(const std::function<void()>& work) {
  if (device_.is_cpu() || !fallback_.empty() || runs_ < kEagerRuns) {
    ++runs_;
    return work();
  }
  OCCAM_CHECK(!TraceSpan::heard(), ErrorKind::usage,
              "profiler: the step is replayed from a CUDA graph, where single ops have no time of their own; "
              "profile it without capture");
  void* stream = current_stream(device_).handle;
  if (!graph_) {
    synchronize(device_);
    allocator_for(device_).trim();  // what the eager runs used is needed again, by the graph
    auto graph = std::make_unique<cuda::Graph>();
    try {
      graph->capture(stream, work);
    } catch (const Error& e) {
      fallback_ = e.what();
      return work();
    }
    graph_ = std::move(graph);
  }
  graph_->launch(stream);
}
#else
bool Replay::captured() const { return false; }
int64_t Replay::nodes() const { return 0; }
int64_t Replay::bytes() const { return 0; }
void Replay::run(const std::function<void()>& work) { work(); }
#endif

}  // namespace occam
