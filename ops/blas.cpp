#include "ops/blas.h"

#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/check.h"
#include "core/dispatch.h"
#include "core/vmath.h"
#include "ops/reduce/add_rows.h"
#include "ops/wide_product.h"
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

/// Of sums of few terms, another pass over d for the bias costs as much as the product. So a thread makes
/// some rows at a time: enough to pay for packing b again, few enough to stay in the L2 cache until the bias
/// is added.
constexpr int64_t kFewTerms = 128, kLeastRows = 256, kMostRows = 1024;
/// A sum of so many terms, as the gradient of a weight over all rows, is cut into parts, whatever the number
/// of threads: d alone has too few elements for many of them. So many elements may all parts have.
constexpr int64_t kLongSum = 1024, kSumParts = 16, kMostPartial = int64_t{1} << 24;

/// So few rows do not pay for packing b.
constexpr int64_t kLeastWideRows = 8;

bool serves_wide(const Product& p) {
  return p.dtype_ab == DType::f32 && wide_vectors() && !p.trans_a && p.m >= kLeastWideRows;
}

/// Threads pack b together, then each makes a part of the rows, and of the columns where there are few rows.
void product_wide(const Product& p, const float* a, int64_t lda, const float* b, int64_t ldb, float* d,
                  int64_t ldd) {
  WideProduct whole{.m = p.m, .n = p.n, .k = p.k, .a = a, .lda = lda, .b = b, .ldb = ldb, .d = d, .ldd = ldd};
  whole.alpha = float(p.alpha), whole.beta = float(p.beta), whole.bias = static_cast<const float*>(p.bias);
  whole.gelu = static_cast<float*>(p.gelu), whole.slope_at = static_cast<const float*>(p.slope_at);
  if (omp_in_parallel() || double(p.m) * double(p.n) * double(p.k) < 1e5)
    return wide_product_packing(whole, p.trans_b);
  const int64_t panels = (p.n + kWideColumns - 1) / kWideColumns, threads = omp_get_max_threads();
  const int64_t row_parts = std::clamp<int64_t>(p.m / 8, 1, threads);
  const int64_t column_parts = std::min(panels, std::max<int64_t>(1, threads / row_parts));
  const Tensor packed = empty({wide_packed(p.k, p.n)}, {DType::f32, kCPU});
  float* panel_of = packed.data<float>();
#pragma omp parallel if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < panels; ++i) wide_pack(p.trans_b, b, ldb, p.k, p.n, i, i + 1, panel_of);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < row_parts * column_parts; ++i) {
      const int64_t row_part = i % row_parts, column_part = i / row_parts;
      const int64_t first = row_part * p.m / row_parts;
      const int64_t column = column_part * panels / column_parts * kWideColumns;
      const int64_t last = std::min(p.n, (column_part + 1) * panels / column_parts * kWideColumns);
      const int64_t at = first * ldd + column;
      WideProduct w = whole;
      w.m = (row_part + 1) * p.m / row_parts - first, w.n = last - column;
      w.a += first * lda, w.b = panel_of + column * p.k, w.ldb = 0, w.d += at;
      if (w.bias != nullptr) w.bias += column;
      if (w.gelu != nullptr) w.gelu += at;
      if (w.slope_at != nullptr) w.slope_at += at;
      wide_product(w);
    }
  }
}

bool cut_sum(const Product& p) {
  return p.trans_a && !p.trans_b && p.k >= kLongSum && p.m * p.n * kSumParts <= kMostPartial;
}

/// d packed, on this thread.
template <class T>
void product_of_part(const Product& p, const T* a, int64_t lda, const T* b, int64_t ldb, T* d) {
  if constexpr (std::is_same_v<T, float>)
    if (wide_vectors() && p.n % 16 == 0) {
      WideProduct w{
          .trans_a = p.trans_a, .m = p.m, .n = p.n, .k = p.k, .a = a, .lda = lda, .b = b, .ldb = ldb};
      w.d = d, w.ldd = p.n, w.alpha = float(p.alpha);
      return wide_product(w);
    }
  gemm_cpu(p, a, int(lda), b, int(ldb), d, int(p.n));
}

/// d = sum over parts of k, each a product of one thread, and bias; row_sums on the way.
template <class T>
void product_by_sums(const Product& p, const T* a, int64_t lda, const T* b, int64_t ldb, T* d, int64_t ldd) {
  const int64_t size = p.m * p.n;
  const T* bias = static_cast<const T*>(p.bias);
  const Tensor partial = empty({kSumParts, size}, {dtype_of<T>, kCPU});
  std::vector<double> sums(size_t(p.row_sums != nullptr ? kSumParts * p.m : 0), 0.0);
#pragma omp parallel for schedule(static)
  for (int64_t s = 0; s < kSumParts; ++s) {
    const int64_t first = s * p.k / kSumParts, count = (s + 1) * p.k / kSumParts - first;
    Product part = p;
    part.k = count, part.beta = 0;
    product_of_part(part, a + first * lda, lda, b + first * ldb, ldb, partial.data<T>() + s * size);
    if (p.row_sums != nullptr) add_rows(a + first * lda, count, lda, p.m, sums.data() + s * p.m);
  }
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < p.m; ++r) {
    const T* from = partial.data<T>() + r * p.n;
    for (int64_t c = 0; c < p.n; ++c) {
      T total = from[c];
      for (int64_t s = 1; s < kSumParts; ++s) total += from[s * size + c];
      if (bias != nullptr) total += bias[c];
      d[r * ldd + c] = p.beta == 0 ? total : total + T(p.beta) * d[r * ldd + c];
    }
    if (p.row_sums == nullptr) continue;
    double total = 0;
    for (int64_t s = 0; s < kSumParts; ++s) total += sums[size_t(s * p.m + r)];
    static_cast<T*>(p.row_sums)[r] = T(total);
  }
}

template <class T>
void add_bias(const Product& p, T* d, int64_t ldd, int64_t first, int64_t last) {
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t r = first; r < last; ++r)
    for (int64_t c = 0; c < p.n; ++c) d[r * ldd + c] += bias[c];
}

/// Rows shared among threads by us or by OpenBLAS; then the bias.
template <class T>
void product_by_rows(const Product& p, const T* a, int64_t lda, const T* b, int64_t ldb, T* d, int64_t ldd) {
  if constexpr (std::is_same_v<T, float>)
    if (serves_wide(p)) return product_wide(p, a, lda, b, ldb, d, ldd);
  const int64_t threads = omp_in_parallel() ? 1 : omp_get_max_threads();
  if (p.trans_a || p.k > kFewTerms || p.m < kLeastRows * threads) {
    gemm_cpu(p, a, int(lda), b, int(ldb), d, int(ldd));
    if (p.bias == nullptr) return;
    const int64_t parts = p.m * p.n > 16384 ? threads : 1;
#pragma omp parallel for if (parts > 1)
    for (int64_t i = 0; i < parts; ++i) add_bias(p, d, ldd, i * p.m / parts, (i + 1) * p.m / parts);
    return;
  }
  const int64_t parts = threads * ((p.m + threads * kMostRows - 1) / (threads * kMostRows));
#pragma omp parallel for schedule(static) if (threads > 1)
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t first = i * p.m / parts, last = (i + 1) * p.m / parts;
    Product part = p;
    part.m = last - first;
    gemm_cpu(part, a + first * lda, int(lda), b, int(ldb), d + first * ldd, int(ldd));
    if (p.bias != nullptr) add_bias(p, d, ldd, first, last);
  }
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
  if (p.device.is_cpu())
    return p.batch == 1 && p.dtype_ab == p.dtype_d && (p.row_sums == nullptr || cut_sum(p)) &&
           ((p.gelu == nullptr && p.slope_at == nullptr) || serves_wide(p));
#if OCCAM_CUDA
  if (p.device.is_cuda() && p.gelu == nullptr && p.slope_at == nullptr && p.m > 0 && p.n > 0 && p.k > 0)
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
  OCCAM_CHECK(p.dtype_d == p.dtype_ab, ErrorKind::internal, "matrix product of {} into {} on the CPU",
              name_of(p.dtype_ab), name_of(p.dtype_d));
  int64_t lda = p.lda ? p.lda : p.trans_a ? p.m : p.k, ldb = p.ldb ? p.ldb : p.trans_b ? p.k : p.n;
  int64_t ldd = p.ldd ? p.ldd : p.n;
  for (int64_t size : {p.m, p.n, p.k, lda, ldb, ldd})
    OCCAM_CHECK(size <= INT32_MAX, ErrorKind::shape,
                "matrix product [{},{}]x[{},{}]: OpenBLAS counts in 32 bits", p.m, p.k, p.k, p.n);
  dispatch_float(p.dtype_ab, [&]<class T>() {
    const T *x = static_cast<const T*>(a), *y = static_cast<const T*>(b);
    T* out = static_cast<T*>(d);
    if (p.batch == 1 && cut_sum(p)) return product_by_sums(p, x, lda, y, ldb, out, ldd);
    if (p.batch == 1) return product_by_rows(p, x, lda, y, ldb, out, ldd);
    // Many small products share the threads better than each of them does; a few tiny ones need no threads.
    double work = double(p.m) * double(p.n) * double(p.k);
    bool small = work < 1e7 && work * double(p.batch) > 1e5;
#pragma omp parallel for if (small)
    for (int64_t i = 0; i < p.batch; ++i)
      product_by_rows(p, x + i * p.stride_a, lda, y + i * p.stride_b, ldb, out + i * p.stride_d, ldd);
  });
}

}  // namespace occam
