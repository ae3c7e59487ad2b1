#include "core/cuda/cublaslt.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "core/check.h"
#include "core/cuda/algorithm_store.h"
#include "core/cuda/backend.h"
#include "core/cuda/check.h"
#include "core/cuda/gemm_problem.h"
#include "core/cuda/memory.h"
#include "core/cuda/timer.h"

namespace occam::cuda {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr size_t kWorkspaceBytes = size_t(32) << 20;  // NVIDIA's recommendation for Hopper

struct Algorithm {
  cublasLtMatmulAlgo_t algo;
  size_t workspace;
};

/// Null for a problem without an algorithm.
std::map<ProblemKey, std::optional<Algorithm>>& algorithms() {
  static auto* map = new std::map<ProblemKey, std::optional<Algorithm>>;
  return *map;
}
std::mutex& algorithms_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

struct HandleDeleter {
  void operator()(cublasLtContext* handle) const { cublasLtDestroy(handle); }
};
struct WorkspaceDeleter {
  Stream stream;
  void operator()(void* pointer) const {
    device_cache(stream.device.index).free(pointer, kWorkspaceBytes, stream);
  }
};

cublasLtHandle_t handle_of(int device) {
  thread_local std::map<int, std::unique_ptr<cublasLtContext, HandleDeleter>> handles;
  auto& handle = handles[device];
  if (!handle) {
    AllowInCapture allow;
    cublasLtHandle_t created = nullptr;
    OCCAM_CUBLAS_CHECK(cublasLtCreate(&created), fmt::format("cuda:{}", device));
    handle.reset(created);
  }
  return handle.get();
}

/// A workspace first used inside a capture must not belong to that capture's pool.
void* workspace_of(void* stream, int device) {
  thread_local std::map<void*, std::unique_ptr<void, WorkspaceDeleter>> workspaces;
  auto it = workspaces.find(stream);
  if (it == workspaces.end()) {
    const Stream owner{cuda_device(device), stream};
    void* pointer = device_cache(device).alloc_to_stay(kWorkspaceBytes, owner);
    it = workspaces.try_emplace(stream, pointer, WorkspaceDeleter{owner}).first;
  }
  return it->second.get();
}

void prefer(cublasLtMatmulPreferenceOpaque_t& preference, cublasLtMatmulPreferenceAttributes_t attribute,
            const auto& value) {
  OCCAM_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)),
                     "gemm");
}

/// The heuristic's proposals, the one it thinks best first.
std::vector<Algorithm> ask_heuristic(const GemmArgs& g, Descriptors& t, int device, int most) {
  AllowInCapture allow;
  cublasLtMatmulPreferenceOpaque_t preference;
  OCCAM_CUBLAS_CHECK(cublasLtMatmulPreferenceInit(&preference), "gemm");
  prefer(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(kWorkspaceBytes));
  // Partial sums of a split k are added in f32: adding them in bf16 would round each of them.
  prefer(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(g.b));
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(g.a));
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(g.c));
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(g.d));
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most));
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_of(device), &t.operation, &t.a, &t.b, &t.c, &t.d, &preference, most, results.data(), &found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return {};
  if (status != CUBLAS_STATUS_SUCCESS) fail_cublas(status, "cublasLtMatmulAlgoGetHeuristic", describe(g));
  std::vector<Algorithm> algorithms;
  for (int i = 0; i < found; ++i) {
    const cublasLtMatmulHeuristicResult_t& r = results[size_t(i)];
    if (r.state == CUBLAS_STATUS_SUCCESS) algorithms.push_back({r.algo, r.workspaceSize});
  }
  return algorithms;
}

cublasStatus_t queue(const GemmArgs& g, Descriptors& t, const Algorithm& algorithm, int device,
                     void* stream) {
  void* workspace = algorithm.workspace > 0 ? workspace_of(stream, device) : nullptr;
  return cublasLtMatmul(handle_of(device), &t.operation, t.alpha(), g.b, &t.a, g.a, &t.b, t.beta(), g.c, &t.c,
                        g.d, &t.d, &algorithm.algo, workspace, algorithm.workspace, as_stream(stream));
}

/// Times each proposal on the caller's own operands and returns the fastest. What it writes to d (and to
/// bias or aux) the caller's product writes again.
Algorithm fastest(const std::vector<Algorithm>& proposals, const GemmArgs& g, Descriptors& t, int device,
                  void* stream) {
  constexpr int kSamples = 5;
  constexpr float kSample = 0.1f;  // milliseconds: short products are queued several times, as in a model
  Timer timer;
  auto time = [&](const Algorithm& a, int runs) {
    timer.start(stream);
    for (int i = 0; i < runs; ++i)
      if (queue(g, t, a, device, stream) != CUBLAS_STATUS_SUCCESS) return infinity;
    timer.stop(stream);
    return timer.milliseconds() / float(runs);
  };
  const Algorithm* best = &proposals.front();
  float least = infinity;
  for (const Algorithm& a : proposals) {
    if (time(a, 1) == infinity) continue;  // also loads the kernel
    const int runs = std::clamp(int(kSample / time(a, 1)), 1, 20);
    float shortest = infinity;  // what disturbs a sample only makes it longer
    for (int i = 0; i < kSamples; ++i) shortest = std::min(shortest, time(a, runs));
    if (shortest < least) least = shortest, best = &a;
  }
  return *best;
}

AlgorithmStore& store_of(int device) {
  static std::mutex mutex;
  static auto* stores = new std::map<int, std::unique_ptr<AlgorithmStore>>;
  std::lock_guard lock(mutex);
  auto& store = (*stores)[device];
  if (!store)
    store = std::make_unique<AlgorithmStore>(
        fmt::format("gemm-{}-{}", device_name(device), cublasLtGetVersion()));
  return *store;
}

/// A stored choice, if the library still takes it for this problem.
std::optional<Algorithm> stored(const AlgorithmStore::Choice& choice, Descriptors& t, int device) {
  static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(choice.words));
  Algorithm a;
  std::memcpy(&a.algo, choice.words.data(), sizeof(a.algo));
  a.workspace = size_t(choice.workspace);
  cublasLtMatmulHeuristicResult_t result{};
  AllowInCapture allow;
  const bool fits = a.workspace <= kWorkspaceBytes &&
                    cublasLtMatmulAlgoCheck(handle_of(device), &t.operation, &t.a, &t.b, &t.c, &t.d, &a.algo,
                                            &result) == CUBLAS_STATUS_SUCCESS &&
                    result.workspaceSize <= a.workspace;
  return fits ? std::optional(a) : std::nullopt;
}

/// Products that take microseconds are not worth measuring; one that adds to d would add many times.
bool worth_measuring(const GemmArgs& g) {
  return double(g.m) * double(g.n) * double(g.k) * double(g.batch) > 2e7 && g.beta == 0;
}

std::optional<Algorithm> choose(const GemmArgs& g, Descriptors& t, int device, void* stream) {
  const bool measure = worth_measuring(g);
  const std::string problem = measure ? describe(g) : "";
  if (measure)
    if (auto choice = store_of(device).find(problem))
      if (auto algorithm = stored(*choice, t, device)) return algorithm;
  constexpr int kProposals = 12;
  std::vector<Algorithm> proposals = ask_heuristic(g, t, device, measure ? kProposals : 1);
  if (proposals.empty()) return std::nullopt;
  if (!measure || is_capturing(stream)) return proposals.front();
  const Algorithm best = fastest(proposals, g, t, device, stream);
  AlgorithmStore::Choice choice;
  std::memcpy(choice.words.data(), &best.algo, sizeof(best.algo));
  choice.workspace = best.workspace;
  store_of(device).put(problem, choice);
  return best;
}

std::optional<Algorithm> algorithm_for(const GemmArgs& g, Descriptors& t, int device, void* stream) {
  const ProblemKey key = key_of(g, device);
  std::lock_guard lock(algorithms_mutex());
  auto it = algorithms().find(key);
  if (it == algorithms().end()) it = algorithms().emplace(key, choose(g, t, device, stream)).first;
  return it->second;
}

/// An empty sum: d = beta c. cuBLASLt has no algorithm for k = 0.
void scale_only(const GemmArgs& g, void* stream) {
  OCCAM_CHECK(g.epilogue == GemmEpilogue::none && (g.beta == 0 || (g.beta == 1 && g.c == g.d)),
              ErrorKind::shape,
              "{}: a product over nothing takes no epilogue and no beta but 0, or 1 in place", describe(g));
  if (g.beta != 0) return;
  note_work();
  const size_t unit = size_of(g.dtype_cd);
  for (int64_t i = 0; i < g.batch; ++i)
    OCCAM_CUDA_CHECK(cudaMemset2DAsync(static_cast<char*>(g.d) + i * g.stride_d * int64_t(unit),
                                       size_t(g.ldd) * unit, 0, size_t(g.n) * unit, size_t(g.m),
                                       as_stream(stream)));
}

}  // namespace

Json gemm_choices(int device) { return store_of(device).used(); }

bool restore_gemm_choices(int device, const Json& choices) {
  if (!store_of(device).pin(choices)) return false;
  std::lock_guard lock(algorithms_mutex());
  std::erase_if(algorithms(), [&](const auto& entry) { return entry.first[0] == device; });
  return true;
}

bool gemm_supported(const GemmArgs& args, void* stream) {
  const GemmArgs g = completed(args);
  if (g.m == 0 || g.n == 0 || g.k == 0 || g.batch == 0) return g.epilogue == GemmEpilogue::none;
  const int device = device_of(stream);
  DeviceGuard guard(device);
  Descriptors t(g);
  return algorithm_for(g, t, device, stream).has_value();
}

void gemm(const GemmArgs& args, void* stream) {
  const GemmArgs g = completed(args);
  if (g.m == 0 || g.n == 0 || g.batch == 0) return;
  const int device = device_of(stream);
  DeviceGuard guard(device);
  if (g.k == 0) return scale_only(g, stream);
  Descriptors t(g);
  const std::optional<Algorithm> algorithm = algorithm_for(g, t, device, stream);
  OCCAM_CHECK(algorithm, ErrorKind::device, "cuBLASLt has no algorithm for {}", describe(g));
  const cublasStatus_t status = queue(g, t, *algorithm, device, stream);
  if (status != CUBLAS_STATUS_SUCCESS) fail_cublas(status, "cublasLtMatmul", describe(g));
  check_launch("cublasLtMatmul", stream);
}

}  // namespace occam::cuda
