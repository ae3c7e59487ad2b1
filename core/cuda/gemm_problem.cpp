#include "core/cuda/gemm_problem.h"

#include <fmt/format.h>

#include "core/check.h"

namespace occam::cuda {

namespace {

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

}  // namespace

[[noreturn]] void fail_cublas(cublasStatus_t status, const char* call, const std::string& where) {
  fail(ErrorKind::device, fmt::format("{}: {} failed: {} ({})", where, call, cublasLtGetStatusString(status),
                                      cublasLtGetStatusName(status)));
}

uint32_t alignment(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  uint32_t align = 256;
  while (address % align != 0) align /= 2;
  return align;
}

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

Descriptors::Descriptors(const GemmArgs& g) {
  f64 = g.dtype_ab == DType::f64;
  alpha64 = g.alpha, beta64 = g.beta;
  alpha32 = float(g.alpha), beta32 = float(g.beta);
  cublasComputeType_t compute = f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  if (g.dtype_ab == DType::f32 && g.tf32) compute = CUBLAS_COMPUTE_32F_FAST_TF32;
  OCCAM_CUBLAS_CHECK(cublasLtMatmulDescInit(&operation, compute, f64 ? CUDA_R_64F : CUDA_R_32F), "gemm");
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, int32_t(g.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N));
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, int32_t(g.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N));
  if (g.epilogue != GemmEpilogue::none) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t(epilogue_of(g.epilogue)));
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t(data_type(g.dtype_cd)));
    if (g.batch > 1) set(operation, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, int64_t(g.n));
  }
  init_layout(a, g.dtype_ab, g.trans_b ? g.k : g.n, g.trans_b ? g.n : g.k, g.ldb, g.batch, g.stride_b);
  init_layout(b, g.dtype_ab, g.trans_a ? g.m : g.k, g.trans_a ? g.k : g.m, g.lda, g.batch, g.stride_a);
  init_layout(c, g.dtype_cd, g.n, g.m, g.ldc, g.batch, g.stride_c);
  init_layout(d, g.dtype_cd, g.n, g.m, g.ldd, g.batch, g.stride_d);
}

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

}  // namespace occam::cuda
