#include "ops/layer_norm/cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/vmath.h"

namespace occam {

namespace {

constexpr int64_t kPart = 128;  // rows of a partial sum

template <class T>
OCCAM_VECTORIZED void forward_rows(const LayerNormForwardCpu<T>& a, int64_t first, int64_t last) {
  const int64_t c = a.c;
  const T *weight = a.weight, *bias = a.bias;
  for (int64_t r = first; r < last; ++r) {
    const T* in = a.x + r * c;
    T *y = a.y + r * c, sum = 0, squares = 0;
    if (a.branch != nullptr) {
      const T *branch = a.branch + r * c, scale = a.scales.of_row(r);
      T* stored = a.sum + r * c;
      for (int64_t i = 0; i < c; ++i) stored[i] = in[i] + scale * branch[i];
      in = stored;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < c; ++i) sum += in[i];
    const T m = sum / T(c);
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < c; ++i) squares += (in[i] - m) * (in[i] - m);
    const T s = 1 / std::sqrt(squares / T(c) + a.eps);
    for (int64_t i = 0; i < c; ++i) y[i] = (in[i] - m) * s * weight[i] + bias[i];
    a.mean[r] = m, a.rstd[r] = s;
  }
}

/// gw and gb, of c elements each, are added to where they are not null.
template <class T>
OCCAM_VECTORIZED void backward_rows(const LayerNormBackwardCpu<T>& a, int64_t first, int64_t last, T* gw,
                                    T* gb) {
  const int64_t c = a.c;
  const T* weight = a.weight;
  for (int64_t r = first; r < last; ++r) {
    const T *in = a.x + r * c, *g = a.gy + r * c, m = a.mean[r], s = a.rstd[r];
    T mean_g = 0, mean_gx = 0;
    if (gw != nullptr)
      for (int64_t i = 0; i < c; ++i) gw[i] += g[i] * (in[i] - m) * s, gb[i] += g[i];
    if (a.gx == nullptr) continue;
#pragma omp simd reduction(+ : mean_g, mean_gx)
    for (int64_t i = 0; i < c; ++i) mean_g += g[i] * weight[i], mean_gx += g[i] * weight[i] * (in[i] - m) * s;
    mean_g /= T(c), mean_gx /= T(c);
    T* out = a.gx + r * c;
    if (a.gsum != nullptr) {
      const T* gsum = a.gsum + r * c;
      for (int64_t i = 0; i < c; ++i)
        out[i] = gsum[i] + s * (g[i] * weight[i] - mean_g - (in[i] - m) * s * mean_gx);
    } else {
      for (int64_t i = 0; i < c; ++i) out[i] = s * (g[i] * weight[i] - mean_g - (in[i] - m) * s * mean_gx);
    }
  }
}

/// What the sum alone gives where y has no gradient.
template <class T>
void pass_rows(const LayerNormBackwardCpu<T>& a, int64_t first, int64_t last) {
  const int64_t begin = first * a.c, end = last * a.c;
  if (a.gx == nullptr) return;
  if (a.gsum != nullptr) {
    std::copy(a.gsum + begin, a.gsum + end, a.gx + begin);
  } else {
    std::fill(a.gx + begin, a.gx + end, T(0));
  }
}

}  // namespace

template <class T>
void layer_norm_forward_cpu(const LayerNormForwardCpu<T>& a) {
  const int64_t parts = (a.rows + kPart - 1) / kPart;
#pragma omp parallel for if (a.rows * a.c > 16384)
  for (int64_t p = 0; p < parts; ++p) forward_rows(a, p * kPart, std::min(a.rows, (p + 1) * kPart));
}

template <class T>
void layer_norm_backward_cpu(const LayerNormBackwardCpu<T>& a) {
  const int64_t parts = (a.rows + kPart - 1) / kPart, c = a.c;
  const bool sums = a.gweight != nullptr;
  std::vector<T> partial(size_t(sums ? parts * 2 * c : 0), T(0));
#pragma omp parallel for if (a.rows * c > 16384)
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t first = p * kPart, last = std::min(a.rows, first + kPart);
    T* gw = sums ? partial.data() + p * 2 * c : nullptr;
    if (a.gy != nullptr) {
      backward_rows(a, first, last, gw, sums ? gw + c : nullptr);
    } else {
      pass_rows(a, first, last);
    }
    if (a.gbranch != nullptr)
      for (int64_t r = first; r < last; ++r) {
        const T scale = a.scales.of_row(r);
        for (int64_t i = r * c; i < (r + 1) * c; ++i) a.gbranch[i] = scale * a.gx[i];
      }
  }
  if (!sums) return;
  for (int64_t i = 0; i < c; ++i) {
    double w = 0, b = 0;
    for (int64_t p = 0; p < parts; ++p)
      w += partial[size_t(p * 2 * c + i)], b += partial[size_t((p * 2 + 1) * c + i)];
    a.gweight[i] = T(w), a.gbias[i] = T(b);
  }
}

#define OCCAM_INSTANTIATE(T)                                           \
  template void layer_norm_forward_cpu(const LayerNormForwardCpu<T>&); \
  template void layer_norm_backward_cpu(const LayerNormBackwardCpu<T>&)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(double);

}  // namespace occam
