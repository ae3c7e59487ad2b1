#pragma once
// A CUDA graph of a piece of work with fixed shapes, replayed with one launch.
#include <cstdint>
#include <functional>

namespace occam::cuda {

/// What `work` queues is recorded once and replayed on the same addresses. Rules for `work`, and so for every
/// capturable op: it queues on `stream` alone (or on streams joined to it by stream_wait, and joined back),
/// reads nothing on the host, and finds step, learning rate and seeds in device memory. What it allocates
/// comes from the graph's private pool of the device, which nobody else uses while the Graph lives. Run
/// `work` once or twice before: kernels, handles and algorithms are then loaded.
///
/// Tensors made inside stay valid and hold what the last replay wrote. Tensors from outside that `work` reads
/// must live as long as the Graph.
class Graph {
 public:
  Graph() = default;
  /// Waits for the last replay, then gives the pool back.
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// `stream` is one of backend.h's. Nothing runs yet. Throws Error{device} saying that the capture failed
  /// and why: the error of `work` itself when it threw one, else CUDA's. The stream is usable again
  /// afterwards in every case. A Graph captures once.
  void capture(void* stream, const std::function<void()>& work);
  /// Replays on `stream`; replays of one graph must follow each other in stream order.
  void launch(void* stream);

  bool captured() const { return executable_ != nullptr; }
  /// Kernels, copies and the like in the graph.
  int64_t nodes() const { return nodes_; }
  /// Bytes of the private pool.
  int64_t pool_bytes() const;

 private:
  void release() noexcept;

  void* executable_ = nullptr;  // cudaGraphExec_t
  void* last_stream_ = nullptr;
  int64_t nodes_ = 0;
  int64_t pool_ = 0;  // 0: none
  int device_ = 0;
};

}  // namespace occam::cuda
