#include "core/cuda/capture.h"

#include <fmt/format.h>

#include <exception>
#include <string>

#include "core/check.h"
#include "core/cuda/check.h"
#include "core/cuda/memory.h"

namespace occam::cuda {

namespace {

[[noreturn]] void fail_capture(ErrorKind kind, const std::string& why) {
  fail(kind,
       fmt::format(
           "capture of a CUDA graph failed: {}; captured work may not wait for the device, read results "
           "on the host or use a stream that is not joined to the captured one",
           why));
}

std::string text_of(cudaError_t status) {
  return fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status));
}

}  // namespace

Graph::~Graph() { release(); }

void Graph::release() noexcept {
  if (executable_ != nullptr) {
    if (last_stream_ != nullptr)
      report_cuda_error(cudaStreamSynchronize(as_stream(last_stream_)), "cudaStreamSynchronize");
    report_cuda_error(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_)),
                      "cudaGraphExecDestroy");
    executable_ = nullptr;
  }
  if (pool_ != 0) device_cache(device_).release_pool(pool_);
  pool_ = 0;
}

void Graph::capture(void* stream, const std::function<void()>& work) {
  OCCAM_CHECK(executable_ == nullptr, ErrorKind::internal, "a Graph captures once; make a new one");
  device_ = device_of(stream);
  DeviceGuard guard(device_);
  CachingAllocator& cache = device_cache(device_);
  pool_ = cache.begin_capture_pool();

  // Thread-local mode: other threads (a data loader) go on calling what this thread may not.
  note_work();  // what is recorded does not follow what was launched, nor the other way round
  cudaError_t status = cudaStreamBeginCapture(as_stream(stream), cudaStreamCaptureModeThreadLocal);
  cudaGraph_t graph = nullptr;
  std::exception_ptr thrown;
  if (status == cudaSuccess) {
    try {
      work();
    } catch (...) {
      thrown = std::current_exception();
    }
    status = cudaStreamEndCapture(as_stream(stream), &graph);
    note_work();
  }
  cache.end_capture_pool(pool_);
  cudaGetLastError();  // an invalidated capture leaves an error behind that is reported here

  size_t nodes = 0;
  cudaGraphExec_t executable = nullptr;
  if (!thrown && status == cudaSuccess) status = cudaGraphGetNodes(graph, nullptr, &nodes);
  if (!thrown && status == cudaSuccess) status = cudaGraphInstantiate(&executable, graph, 0);
  if (graph != nullptr) report_cuda_error(cudaGraphDestroy(graph), "cudaGraphDestroy");
  if (thrown || status != cudaSuccess) {
    cudaGetLastError();
    release();
    if (!thrown) fail_capture(ErrorKind::device, text_of(status));
    try {
      std::rethrow_exception(thrown);
    } catch (const Error& e) {
      fail_capture(e.kind(), e.what());
    } catch (const std::exception& e) {
      fail_capture(ErrorKind::internal, e.what());
    }
  }
  executable_ = executable;
  nodes_ = int64_t(nodes);
}

void Graph::launch(void* stream) {
  OCCAM_CHECK(executable_ != nullptr, ErrorKind::internal, "launch of a Graph that has captured nothing");
  OCCAM_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), as_stream(stream)));
  last_stream_ = stream;
  check_launch("captured graph", stream);
}

int64_t Graph::pool_bytes() const { return pool_ == 0 ? 0 : device_cache(device_).pool_bytes(pool_); }

}  // namespace occam::cuda
