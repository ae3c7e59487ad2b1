#include "ops/blas.h"

#include <cblas.h>

#include <atomic>

#include "core/check.h"
#include "core/dispatch.h"
#if OCCAM_CUDA
#include "core/cuda/cublaslt.h"
#endif

namespace occam {

namespace {
std::atomic<bool> tf32{false};

void gemm_cpu(const Product& p, const float* a, int lda, const float* b, int ldb, float* d, int ldd) {
  cblas_sgemm(CblasRowMajor, p.trans_a ? CblasTrans : CblasNoTrans, p.trans_b ? CblasTrans : CblasNoTrans,
              int(p.m), int(p.n), int(p.k), float(p.alpha), a, lda, b, ldb, float(p.beta), d, ldd);
}
void gemm_cpu(const Product& p, const double* a, int lda, const double* b, int ldb, double* d, int ldd) {
  cblas_dgemm(CblasRowMajor, p.trans_a ? CblasTrans : CblasNoTrans, p.trans_b ? CblasTrans : CblasNoTrans,
              int(p.m), int(p.n), int(p.k), p.alpha, a, lda, b, ldb, p.beta, d, ldd);
}
}  // namespace

void set_tf32(bool allowed) { tf32 = allowed; }
bool tf32_allowed() { return tf32; }

#if OCCAM_CUDA
namespace {
cuda::GemmArgs gemm_args(const Product& p, const void* a, const void* b, void* d) {
  cuda::GemmArgs g;
  g.trans_a = p.trans_a, g.trans_b = p.trans_b;
  g.m = p.m, g.n = p.n, g.k = p.k;
  g.a = a, g.b = b, g.d = d;
  g.dtype_ab = p.dtype_ab, g.dtype_cd = p.dtype_d;
  g.lda = p.lda, g.ldb = p.ldb, g.ldd = p.ldd;
  g.batch = p.batch, g.stride_a = p.stride_a, g.stride_b = p.stride_b, g.stride_d = p.stride_d;
  g.alpha = p.alpha, g.beta = p.beta;
  g.tf32 = tf32;
  if (p.bias != nullptr) {
    g.epilogue = cuda::GemmEpilogue::bias;
    g.bias = const_cast<void*>(p.bias);
  } else if (p.row_sums != nullptr) {
    g.epilogue = cuda::GemmEpilogue::bias_gradient_a;
    g.bias = p.row_sums;
  }
  return g;
}
}  // namespace
#endif

bool product_fuses(const Product& p, const void* a, const void* b, void* d) {
#if OCCAM_CUDA
  if (p.device.is_cuda() && p.m > 0 && p.n > 0 && p.k > 0)
    return cuda::gemm_supported(gemm_args(p, a, b, d), current_stream(p.device).handle);
#endif
  return false;
}

void matrix_product(const Product& p, const void* a, const void* b, void* d) {
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  if (p.device.is_cuda()) {
    OCCAM_ON_CUDA(cuda::gemm(gemm_args(p, a, b, d), current_stream(p.device).handle));
    return;
  }
  OCCAM_CHECK(p.bias == nullptr && p.row_sums == nullptr, ErrorKind::internal,
              "a product on the CPU fuses nothing");
  int64_t lda = p.lda ? p.lda : p.trans_a ? p.m : p.k, ldb = p.ldb ? p.ldb : p.trans_b ? p.k : p.n;
  int64_t ldd = p.ldd ? p.ldd : p.n;
  for (int64_t size : {p.m, p.n, p.k, lda, ldb, ldd})
    OCCAM_CHECK(size <= INT32_MAX, ErrorKind::shape,
                "matrix product [{},{}]x[{},{}]: OpenBLAS counts in 32 bits", p.m, p.k, p.k, p.n);
  dispatch_float(p.dtype_ab, [&]<class T>() {
    const T *x = static_cast<const T*>(a), *y = static_cast<const T*>(b);
    T* out = static_cast<T*>(d);
    // Many small products share the threads better than each of them does; a few tiny ones need no threads.
    double work = double(p.m) * double(p.n) * double(p.k);
    bool small = p.batch > 1 && work < 1e7 && work * double(p.batch) > 1e5;
#pragma omp parallel for if (small)
    for (int64_t i = 0; i < p.batch; ++i)
      gemm_cpu(p, x + i * p.stride_a, int(lda), y + i * p.stride_b, int(ldb), out + i * p.stride_d, int(ldd));
  });
}

}  // namespace occam
