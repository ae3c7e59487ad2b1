#include "ops/attention/cpu.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/dtype.h"
#include "core/tensor.h"
#include "core/vmath.h"
#include "ops/blas.h"

namespace occam {

namespace {

/// Rows of queries whose scores are held at a time, of nearly equal size so that no product is left with a
/// few rows: about 128, since every product packs the keys and values anew; 64 where there are few heads to
/// share among threads.
int64_t tile_rows(int64_t t, int64_t heads) {
  const int64_t most = heads < 16 ? 64 : 128, tiles = (t + most - 1) / most;
  return (t + tiles - 1) / tiles;
}

/// d = alpha op(a) op(b) + beta d on this thread.
template <class T>
void product(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, const T* a,
             int64_t lda, const T* b, int64_t ldb, double beta, T* d, int64_t ldd) {
  matrix_product({.dtype_ab = dtype_of<T>,
                  .dtype_d = dtype_of<T>,
                  .trans_a = trans_a,
                  .trans_b = trans_b,
                  .m = m,
                  .n = n,
                  .k = k,
                  .lda = lda,
                  .ldb = ldb,
                  .ldd = ldd,
                  .alpha = alpha,
                  .beta = beta},
                 a, b, d);
}

/// s <- exp(s - max) over the keys attended to, 0 elsewhere. Returns the sum; `log_sum` is +infinity for a
/// row without keys, so that exp(score - log_sum) is 0 in backward as well.
template <class T>
OCCAM_VECTORIZED T softmax_numerators(T* s, const uint8_t* mask, int64_t t, T& log_sum) {
  constexpr T kInf = std::numeric_limits<T>::infinity();
  if (mask != nullptr)
    for (int64_t j = 0; j < t; ++j) s[j] = mask[j] ? s[j] : -kInf;
  T largest = -kInf, sum = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < t; ++j) largest = std::max(largest, s[j]);
  T shift = largest == -kInf ? T(0) : largest;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < t; ++j) {
    s[j] = exp_of(s[j] - shift);
    sum += s[j];
  }
  log_sum = sum == 0 ? kInf : shift + std::log(sum);
  return sum;
}

template <class T>
OCCAM_VECTORIZED void scale_row(T* row, T factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] *= factor;
}

template <class T>
OCCAM_VECTORIZED T dot_row(const T* a, const T* b, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// p = exp(s - lse) where attended to, else 0; ds = p (dp - delta), into dp.
template <class T>
OCCAM_VECTORIZED void probabilities_and_gradient(T* s, T* dp, const uint8_t* mask, T lse, T delta,
                                                 int64_t t) {
#pragma omp simd
  for (int64_t j = 0; j < t; ++j) {
    s[j] = exp_of(s[j] - lse);
    if (mask != nullptr) s[j] = mask[j] ? s[j] : T(0);
    dp[j] = s[j] * (dp[j] - delta);
  }
}

/// Room for `count` numbers for each thread. Taken before the parallel region, where an exception may pass.
template <class T>
Tensor thread_scratch(int64_t count) {
  return empty({int64_t(omp_get_max_threads()), count}, {dtype_of<T>, kCPU});
}

}  // namespace

template <class T>
void attention_forward_cpu(const AttentionCpu<T>& a) {
  if constexpr (std::is_same_v<T, float>)
    if (wide_vectors()) return attention_forward_wide(a);
  int64_t rows = tile_rows(a.t, a.b * a.h), tiles = (a.t + rows - 1) / rows, items = a.b * a.h * tiles;
  int64_t stride = 3 * a.h * a.d, out_stride = a.h * a.d;
  Tensor scratch = thread_scratch<T>(rows * (a.t + 1));
  T* room = scratch.data<T>();
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < items; ++item) {
    int64_t b = item / (a.h * tiles), h = item / tiles % a.h, first = item % tiles * rows;
    int64_t count = std::min(rows, a.t - first);
    const T* q = a.qkv + b * a.t * stride + h * a.d;
    const T *k = q + out_stride, *v = k + out_stride;
    const uint8_t* mask = a.key_mask ? a.key_mask + b * a.t : nullptr;
    T* s = room + omp_get_thread_num() * rows * (a.t + 1);
    T* y = a.y + (b * a.t + first) * out_stride + h * a.d;
    product(false, true, count, a.t, a.d, a.scale, q + first * stride, stride, k, stride, 0, s, a.t);
    T* sums = s + rows * a.t;
    for (int64_t i = 0; i < count; ++i)
      sums[i] = softmax_numerators(s + i * a.t, mask, a.t, a.lse[(b * a.h + h) * a.t + first + i]);
    product(false, false, count, a.d, a.t, 1, s, a.t, v, stride, 0, y, out_stride);
    for (int64_t i = 0; i < count; ++i) scale_row(y + i * out_stride, sums[i] == 0 ? T(0) : 1 / sums[i], a.d);
  }
}

template <class T>
void attention_backward_cpu(const AttentionCpu<T>& a) {
  if constexpr (std::is_same_v<T, float>)
    if (wide_vectors()) return attention_backward_wide(a);
  int64_t rows = tile_rows(a.t, a.b * a.h), stride = 3 * a.h * a.d, out_stride = a.h * a.d;
  Tensor scratch = thread_scratch<T>(2 * rows * a.t);
  T* room = scratch.data<T>();
  // A head to a thread: the tiles of a head add to the same gradients of k and v, in order.
#pragma omp parallel for schedule(static)
  for (int64_t item = 0; item < a.b * a.h; ++item) {
    int64_t b = item / a.h, h = item % a.h;
    const T* q = a.qkv + b * a.t * stride + h * a.d;
    const T *k = q + out_stride, *v = k + out_stride;
    T* gq = a.gqkv + b * a.t * stride + h * a.d;
    T *gk = gq + out_stride, *gv = gk + out_stride;
    const uint8_t* mask = a.key_mask ? a.key_mask + b * a.t : nullptr;
    T *p = room + omp_get_thread_num() * 2 * rows * a.t, *ds = p + rows * a.t;
    for (int64_t first = 0; first < a.t; first += rows) {
      int64_t count = std::min(rows, a.t - first), at = (b * a.t + first) * out_stride + h * a.d;
      const T *y = a.y + at, *gy = a.gy + at, *q_tile = q + first * stride;
      double beta = first == 0 ? 0 : 1;
      product(false, true, count, a.t, a.d, a.scale, q_tile, stride, k, stride, 0, p, a.t);
      product(false, true, count, a.t, a.d, 1, gy, out_stride, v, stride, 0, ds, a.t);
      for (int64_t i = 0; i < count; ++i) {
        T delta = dot_row(gy + i * out_stride, y + i * out_stride, a.d);
        probabilities_and_gradient(p + i * a.t, ds + i * a.t, mask, a.lse[item * a.t + first + i], delta,
                                   a.t);
      }
      product(true, false, a.t, a.d, count, 1, p, a.t, gy, out_stride, beta, gv, stride);
      product(true, false, a.t, a.d, count, a.scale, ds, a.t, q_tile, stride, beta, gk, stride);
      product(false, false, count, a.d, a.t, a.scale, ds, a.t, k, stride, 0, gq + first * stride, stride);
    }
  }
}

template void attention_forward_cpu(const AttentionCpu<float>&);
template void attention_forward_cpu(const AttentionCpu<double>&);
template void attention_backward_cpu(const AttentionCpu<float>&);
template void attention_backward_cpu(const AttentionCpu<double>&);

}  // namespace occam
