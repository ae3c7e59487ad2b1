#include "core/cuda/cublaslt.h"

#include <cublasLt.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
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
#include "core/cuda/memory.h"
#include "core/cuda/timer.h"

namespace occam::cuda {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr size_t kWorkspaceBytes = size_t(32) << 20;  // NVIDIA's recommendation for Hopper

[[noreturn]] void fail_cublas(cublasStatus_t status, const char* call, const std::string& where) {
  fail(ErrorKind::device, fmt::format("{}: {} failed: {} ({})", where, call, cublasLtGetStatusString(status),
                                      cublasLtGetStatusName(status)));
}

#define OCCAM_CUBLAS_CHECK(call, where)                                                     \
  do {                                                                                      \
    const cublasStatus_t occam_status_ = (call);                                            \
    if (occam_status_ != CUBLAS_STATUS_SUCCESS) fail_cublas(occam_status_, #call, (where)); \
  } while (false)

const char* name_of(GemmEpilogue epilogue) {
  switch (epilogue) {
    case GemmEpilogue::none:
      return "none";
    case GemmEpilogue::bias:
      return "bias";
    case GemmEpilogue::bias_gradient_a:
      return "bias_gradient_a";
  }
  return "?";
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDA_R_32F;
    case DType::f64:
      return CUDA_R_64F;
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f16:
      return CUDA_R_16F;
    default:
      fail(ErrorKind::shape, fmt::format("gemm takes floating types, not {}", occam::name_of(dtype)));
  }
}

/// Largest power of two up to 256 that divides the address; cuBLASLt assumes 256 unless told.
uint32_t alignment(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  uint32_t align = 256;
  while (address % align != 0) align /= 2;
  return align;
}

/// Packed strides filled in and contradictions refused.
GemmArgs completed(GemmArgs g) {
  if (g.lda == 0) g.lda = g.trans_a ? g.m : g.k;
  if (g.ldb == 0) g.ldb = g.trans_b ? g.k : g.n;
  if (g.ldd == 0) g.ldd = g.n;
  if (g.c == nullptr) {
    g.c = g.d;
    g.ldc = g.ldd;
    g.stride_c = g.stride_d;
  }
  if (g.ldc == 0) g.ldc = g.n;
  const bool sizes_fit = g.m >= 0 && g.n >= 0 && g.k >= 0 && g.batch >= 0 &&
                         g.lda >= (g.trans_a ? g.m : g.k) && g.ldb >= (g.trans_b ? g.k : g.n) &&
                         g.ldc >= g.n && g.ldd >= g.n;
  OCCAM_CHECK(sizes_fit, ErrorKind::shape, "{}: a row stride is shorter than a row", describe(g));
  const bool dtypes_fit =
      g.dtype_ab == g.dtype_cd ||
      (g.dtype_cd == DType::f32 && (g.dtype_ab == DType::bf16 || g.dtype_ab == DType::f16));
  OCCAM_CHECK(dtypes_fit, ErrorKind::shape, "{}: these dtypes do not go together", describe(g));
  OCCAM_CHECK((g.epilogue != GemmEpilogue::none) == (g.bias != nullptr), ErrorKind::shape,
              "{}: bias must be given exactly when the epilogue uses it", describe(g));
  OCCAM_CHECK(g.batch <= 1 || g.epilogue != GemmEpilogue::bias_gradient_a, ErrorKind::shape,
              "{}: bias gradients are of one matrix, not a batch", describe(g));
  OCCAM_CHECK(g.batch <= 1 || g.stride_d != 0, ErrorKind::shape, "{}: the outputs of the batch overlap",
              describe(g));
  return g;
}

/// All of a problem that an algorithm's choice may depend on.
using ProblemKey = std::array<int64_t, 24>;
ProblemKey key_of(const GemmArgs& g, int device) {
  return {device,
          g.trans_a,
          g.trans_b,
          g.m,
          g.n,
          g.k,
          int64_t(g.dtype_ab),
          int64_t(g.dtype_cd),
          g.lda,
          g.ldb,
          g.ldc,
          g.ldd,
          g.batch,
          g.stride_a,
          g.stride_b,
          g.stride_c,
          g.stride_d,
          g.tf32,
          int64_t(g.epilogue),
          alignment(g.a),
          alignment(g.b),
          alignment(g.c),
          alignment(g.d),
          alignment(g.bias)};
}

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

/// cuBLASLt is column-major and a row-major matrix is its transpose there: d^T = op(b)^T op(a)^T. So our b is
/// its A, our a its B, and n comes before m.
struct Descriptors {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t a, b, c, d;
  double alpha64, beta64;
  float alpha32, beta32;
  bool f64;

  const void* alpha() const { return f64 ? static_cast<const void*>(&alpha64) : &alpha32; }
  const void* beta() const { return f64 ? static_cast<const void*>(&beta64) : &beta32; }
};

cublasLtEpilogue_t epilogue_of(GemmEpilogue epilogue) {
  switch (epilogue) {
    case GemmEpilogue::none:
      return CUBLASLT_EPILOGUE_DEFAULT;
    case GemmEpilogue::bias:
      return CUBLASLT_EPILOGUE_BIAS;
    case GemmEpilogue::bias_gradient_a:
      return CUBLASLT_EPILOGUE_BGRADB;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

template <class T>
void set(cublasLtMatmulDescOpaque_t& operation, cublasLtMatmulDescAttributes_t attribute, T value) {
  OCCAM_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value)), "gemm");
}

void init_layout(cublasLtMatrixLayoutOpaque_t& layout, DType dtype, int64_t rows, int64_t cols, int64_t ld,
                 int64_t batch, int64_t stride) {
  OCCAM_CUBLAS_CHECK(cublasLtMatrixLayoutInit(&layout, data_type(dtype), uint64_t(rows), uint64_t(cols), ld),
                     "gemm");
  if (batch == 1) return;
  const auto count = int32_t(batch);
  OCCAM_CUBLAS_CHECK(
      cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)),
      "gemm");
  OCCAM_CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                      &stride, sizeof(stride)),
                     "gemm");
}

void init(Descriptors& t, const GemmArgs& g) {
  t.f64 = g.dtype_ab == DType::f64;
  t.alpha64 = g.alpha, t.beta64 = g.beta;
  t.alpha32 = float(g.alpha), t.beta32 = float(g.beta);
  cublasComputeType_t compute = t.f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  if (g.dtype_ab == DType::f32 && g.tf32) compute = CUBLAS_COMPUTE_32F_FAST_TF32;
  OCCAM_CUBLAS_CHECK(cublasLtMatmulDescInit(&t.operation, compute, t.f64 ? CUDA_R_64F : CUDA_R_32F), "gemm");
  set(t.operation, CUBLASLT_MATMUL_DESC_TRANSA, int32_t(g.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N));
  set(t.operation, CUBLASLT_MATMUL_DESC_TRANSB, int32_t(g.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N));
  if (g.epilogue != GemmEpilogue::none) {
    set(t.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t(epilogue_of(g.epilogue)));
    set(t.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
    set(t.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t(data_type(g.dtype_cd)));
    if (g.batch > 1) set(t.operation, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, int64_t(g.n));
  }
  init_layout(t.a, g.dtype_ab, g.trans_b ? g.k : g.n, g.trans_b ? g.n : g.k, g.ldb, g.batch, g.stride_b);
  init_layout(t.b, g.dtype_ab, g.trans_a ? g.m : g.k, g.trans_a ? g.k : g.m, g.lda, g.batch, g.stride_a);
  init_layout(t.c, g.dtype_cd, g.n, g.m, g.ldc, g.batch, g.stride_c);
  init_layout(t.d, g.dtype_cd, g.n, g.m, g.ldd, g.batch, g.stride_d);
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
  const size_t unit = size_of(g.dtype_cd);
  for (int64_t i = 0; i < g.batch; ++i)
    OCCAM_CUDA_CHECK(cudaMemset2DAsync(static_cast<char*>(g.d) + i * g.stride_d * int64_t(unit),
                                       size_t(g.ldd) * unit, 0, size_t(g.n) * unit, size_t(g.m),
                                       as_stream(stream)));
}

}  // namespace

std::string describe(const GemmArgs& g) {
  std::string text = fmt::format("gemm {} [{},{}]x[{},{}] -> {}", occam::name_of(g.dtype_ab), g.m, g.k, g.k,
                                 g.n, occam::name_of(g.dtype_cd));
  if (g.batch != 1) text += fmt::format(", batch {}", g.batch);
  if (g.trans_a) text += ", trans_a";
  if (g.trans_b) text += ", trans_b";
  if (g.tf32) text += ", tf32";
  if (g.beta != 0) text += fmt::format(", beta {}", g.beta);
  text += fmt::format(", epilogue {}, ld {} {} {} {}, aligned to {} {} {} {}", name_of(g.epilogue), g.lda,
                      g.ldb, g.ldc, g.ldd, alignment(g.a), alignment(g.b), alignment(g.c), alignment(g.d));
  return text;
}

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
  Descriptors t;
  init(t, g);
  return algorithm_for(g, t, device, stream).has_value();
}

void gemm(const GemmArgs& args, void* stream) {
  const GemmArgs g = completed(args);
  if (g.m == 0 || g.n == 0 || g.batch == 0) return;
  const int device = device_of(stream);
  DeviceGuard guard(device);
  if (g.k == 0) return scale_only(g, stream);
  Descriptors t;
  init(t, g);
  const std::optional<Algorithm> algorithm = algorithm_for(g, t, device, stream);
  OCCAM_CHECK(algorithm, ErrorKind::device, "cuBLASLt has no algorithm for {}", describe(g));
  const cublasStatus_t status = queue(g, t, *algorithm, device, stream);
  if (status != CUBLAS_STATUS_SUCCESS) fail_cublas(status, "cublasLtMatmul", describe(g));
  check_launch("cublasLtMatmul", stream);
}

}  // namespace occam::cuda
