#include <algorithm>
#include <vector>

#include "core/vmath.h"
#include "ops/dwconv/kernel.h"

namespace occam::kernels {

namespace {

constexpr int64_t kTile = 32;  // channels that one pass keeps in registers

/// to[i] (+)= sum of taps of `from` round patch (r, q), for channels [start, start + count); `flip` turns the
/// kernel round, which is the gradient's form.
template <class T>
OCCAM_VECTORIZED void patch(const DwconvShape& s, const T* from, const T* w, bool flip, const T* base, T* to,
                            int64_t r, int64_t q, int64_t start, int64_t count) {
  T sum[kTile] = {};
  for (int64_t n = 0; n < count; ++n) sum[n] = base[start + n];
  for (int64_t i = 0; i < s.kh; ++i) {
    const int64_t row = r + i - s.kh / 2;
    if (row < 0 || row >= s.gh) continue;
    for (int64_t j = 0; j < s.kw; ++j) {
      const int64_t column = q + j - s.kw / 2;
      if (column < 0 || column >= s.gw) continue;
      const int64_t tap = flip ? s.taps() - 1 - (i * s.kw + j) : i * s.kw + j;
      const T *x = from + (row * s.gw + column) * s.c + start, *weight = w + tap * s.c + start;
      for (int64_t n = 0; n < count; ++n) sum[n] += weight[n] * x[n];
    }
  }
  for (int64_t n = 0; n < count; ++n) to[(r * s.gw + q) * s.c + start + n] = sum[n];
}

/// All patches of one row of the grid; `from` and `to` are an image's patches, `base` [c] is added.
template <class T>
void patch_row(const DwconvShape& s, const T* from, const T* w, bool flip, const T* base, T* to, int64_t r) {
  for (int64_t q = 0; q < s.gw; ++q)
    for (int64_t start = 0; start < s.c; start += kTile)
      patch(s, from, w, flip, base, to, r, q, start, std::min(kTile, s.c - start));
}

template <class T>
void prefix_fwd(const DwconvForward<T, T>& a, int64_t image) {
  const DwconvShape& s = a.s;
  const T* x = a.x + image * s.tokens() * s.c;
  T *y = a.y + image * s.tokens() * s.c, *mean = a.mean + image * s.c;
  std::fill_n(mean, s.c, T(0));
  for (int64_t p = s.prefix; p < s.tokens(); ++p)
    for (int64_t n = 0; n < s.c; ++n) mean[n] += x[p * s.c + n];
  for (int64_t n = 0; n < s.c; ++n) mean[n] /= T(std::max<int64_t>(s.patches(), 1));
  for (int64_t p = 0; p < s.prefix; ++p)
    for (int64_t n = 0; n < s.c; ++n)
      y[p * s.c + n] = a.bias[n] + a.prefix_w[n] * x[p * s.c + n] + a.prefix_w[s.c + n] * mean[n];
}

/// gx of an image's prefix tokens; to_patches [c] = what each patch gets through the mean.
template <class T>
void prefix_bwd(const DwconvBackward<T, T>& a, int64_t image, T* to_patches) {
  const DwconvShape& s = a.s;
  const T* gy = a.gy + image * s.tokens() * s.c;
  T* gx = a.gx + image * s.tokens() * s.c;
  std::fill_n(to_patches, s.c, T(0));
  for (int64_t p = 0; p < s.prefix; ++p)
    for (int64_t n = 0; n < s.c; ++n) {
      to_patches[n] += gy[p * s.c + n];
      gx[p * s.c + n] = a.prefix_w[n] * gy[p * s.c + n];
    }
  for (int64_t n = 0; n < s.c; ++n)
    to_patches[n] *= a.prefix_w[s.c + n] / T(std::max<int64_t>(s.patches(), 1));
}

/// sums[j] += gy x, over a row of the grid, of the taps of kernel row i that look at row `seen`.
template <class T>
OCCAM_VECTORIZED void weight_row(const DwconvShape& s, const T* gy, const T* x, T* sums, int64_t start,
                                 int64_t count) {
  for (int64_t j = 0; j < s.kw; ++j) {
    const int64_t shift = j - s.kw / 2;
    T* sum = sums + j * kTile;
    for (int64_t q = std::max<int64_t>(0, -shift); q < std::min(s.gw, s.gw - shift); ++q) {
      const T *g = gy + q * s.c + start, *in = x + (q + shift) * s.c + start;
      for (int64_t n = 0; n < count; ++n) sum[n] += g[n] * in[n];
    }
  }
}

/// Gradients of kernel row i for a tile of channels, images and rows in order.
template <class T>
void weight_bwd(const DwconvBackward<T, T>& a, int64_t i, int64_t start, int64_t count) {
  const DwconvShape& s = a.s;
  std::vector<double> total(size_t(s.kw * kTile), 0.0);
  std::vector<T> part(size_t(s.kw * kTile));
  for (int64_t image = 0; image < s.b; ++image) {
    std::fill(part.begin(), part.end(), T(0));
    const int64_t first = (image * s.tokens() + s.prefix) * s.c;
    for (int64_t r = 0; r < s.gh; ++r) {
      const int64_t seen = r + i - s.kh / 2;
      if (seen < 0 || seen >= s.gh) continue;
      weight_row(s, a.gy + first + r * s.gw * s.c, a.x + first + seen * s.gw * s.c, part.data(), start,
                 count);
    }
    for (size_t n = 0; n < total.size(); ++n) total[n] += double(part[n]);
  }
  for (int64_t j = 0; j < s.kw; ++j)
    for (int64_t n = 0; n < count; ++n)
      a.gw[(i * s.kw + j) * s.c + start + n] = T(total[size_t(j * kTile + n)]);
}

/// Gradients of bias and prefix weights for a tile of channels.
template <class T>
void rest_bwd(const DwconvBackward<T, T>& a, int64_t start, int64_t count) {
  const DwconvShape& s = a.s;
  double bias[kTile] = {}, self[kTile] = {}, all[kTile] = {};
  for (int64_t image = 0; image < s.b; ++image)
    for (int64_t p = 0; p < s.tokens(); ++p) {
      const int64_t at = (image * s.tokens() + p) * s.c + start;
      for (int64_t n = 0; n < count; ++n) bias[n] += double(a.gy[at + n]);
      if (p >= s.prefix) continue;
      for (int64_t n = 0; n < count; ++n) {
        self[n] += double(a.gy[at + n] * a.x[at + n]);
        all[n] += double(a.gy[at + n] * a.mean[image * s.c + start + n]);
      }
    }
  for (int64_t n = 0; n < count; ++n) {
    a.gbias[start + n] = T(bias[n]);
    a.gprefix[start + n] = T(self[n]), a.gprefix[s.c + start + n] = T(all[n]);
  }
}

}  // namespace

template <class T>
void dwconv_fwd_cpu(const DwconvForward<T, T>& a) {
  const DwconvShape& s = a.s;
#pragma omp parallel for
  for (int64_t image = 0; image < s.b; ++image) prefix_fwd(a, image);
#pragma omp parallel for collapse(2)
  for (int64_t image = 0; image < s.b; ++image)
    for (int64_t r = 0; r < s.gh; ++r) {
      const int64_t first = (image * s.tokens() + s.prefix) * s.c;
      patch_row(s, a.x + first, a.w, false, a.bias, a.y + first, r);
    }
}

template <class T>
void dwconv_bwd_cpu(const DwconvBackward<T, T>& a) {
  const DwconvShape& s = a.s;
  if (a.gx != nullptr) {
    std::vector<T> to_patches(size_t(s.b * s.c));
#pragma omp parallel for
    for (int64_t image = 0; image < s.b; ++image) prefix_bwd(a, image, to_patches.data() + image * s.c);
#pragma omp parallel for collapse(2)
    for (int64_t image = 0; image < s.b; ++image)
      for (int64_t r = 0; r < s.gh; ++r) {
        const int64_t first = (image * s.tokens() + s.prefix) * s.c;
        patch_row(s, a.gy + first, a.w, true, to_patches.data() + image * s.c, a.gx + first, r);
      }
  }
  if (a.gw == nullptr) return;
    // Row kh is everything but the kernel.
#pragma omp parallel for collapse(2)
  for (int64_t i = 0; i <= s.kh; ++i)
    for (int64_t tile = 0; tile < (s.c + kTile - 1) / kTile; ++tile) {
      const int64_t start = tile * kTile, count = std::min(kTile, s.c - start);
      if (i < s.kh)
        weight_bwd(a, i, start, count);
      else
        rest_bwd(a, start, count);
    }
}

template void dwconv_fwd_cpu(const DwconvForward<float, float>&);
template void dwconv_fwd_cpu(const DwconvForward<double, double>&);
template void dwconv_bwd_cpu(const DwconvBackward<float, float>&);
template void dwconv_bwd_cpu(const DwconvBackward<double, double>&);

}  // namespace occam::kernels
