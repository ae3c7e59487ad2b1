#include <algorithm>
#include <vector>

#include "core/vmath.h"
#include "ops/s4d/coefficients.h"
#include "ops/s4d/kernel.h"

namespace occam::kernels {

namespace {

constexpr int64_t kBlock = 64;  // channels in the inner loops

/// Of a block of channels of one direction: coefficients and states [n][kBlock] by part.
template <class T>
struct Lane {
  int64_t n, width;
  std::vector<T> factor_re, factor_im, weight_re, weight_im, re, im, slope_re, slope_im;

  Lane(const ChannelScanShape& s, const T* coefficients, int64_t direction, int64_t first, bool with_slope)
      : n(s.n), width(std::min(kBlock, s.c - first)) {
    const size_t size = size_t(n * kBlock);
    for (auto* v : {&factor_re, &factor_im, &weight_re, &weight_im, &re, &im}) v->assign(size, T(0));
    if (with_slope) slope_re.assign(size, T(0)), slope_im.assign(size, T(0));
    for (int64_t j = 0; j < width; ++j)
      for (int64_t k = 0; k < n; ++k) {
        const T* from = coefficients + ((direction * s.c + first + j) * n + k) * 4;
        const size_t at = size_t(k * kBlock + j);
        factor_re[at] = from[0], factor_im[at] = from[1], weight_re[at] = from[2], weight_im[at] = from[3];
      }
  }
};

/// x = factor x + u, y += Re(weight x).
template <class T>
OCCAM_VECTORIZED void advance(const T* fr, const T* fi, const T* wr, const T* wi, T* re, T* im, const T* u,
                              T* y, int64_t n, int64_t width) {
  for (int64_t k = 0; k < n; ++k)
    for (int64_t j = 0; j < width; ++j) {
      const int64_t i = k * kBlock + j;
      const T r = fr[i] * re[i] - fi[i] * im[i] + u[j];
      im[i] = fr[i] * im[i] + fi[i] * re[i];
      re[i] = r;
      y[j] += wr[i] * r - wi[i] * im[i];
    }
}

/// slope = factor slope + x, x = factor x + u; sums (four [n][kBlock]) += gy x, gy slope.
template <class T>
OCCAM_VECTORIZED void advance_sums(const T* fr, const T* fi, T* re, T* im, T* sr, T* si, const T* u,
                                   const T* gy, T* sums, int64_t n, int64_t width) {
  const int64_t size = n * kBlock;
  for (int64_t k = 0; k < n; ++k)
    for (int64_t j = 0; j < width; ++j) {
      const int64_t i = k * kBlock + j;
      const T slope_re = fr[i] * sr[i] - fi[i] * si[i] + re[i],
              slope_im = fr[i] * si[i] + fi[i] * sr[i] + im[i];
      const T r = fr[i] * re[i] - fi[i] * im[i] + u[j];
      im[i] = fr[i] * im[i] + fi[i] * re[i];
      re[i] = r;
      sr[i] = slope_re, si[i] = slope_im;
      sums[i] += gy[j] * r;
      sums[size + i] += gy[j] * im[i];
      sums[2 * size + i] += gy[j] * slope_re;
      sums[3 * size + i] += gy[j] * slope_im;
    }
}

/// Calls fn(image, direction, first channel) for every task.
template <class Fn>
void for_each_task(const ChannelScanShape& s, const Fn& fn) {
  const int64_t blocks = (s.c + kBlock - 1) / kBlock, tasks = s.b * 2 * blocks;
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < tasks; ++task)
    fn(task / blocks / 2, task / blocks % 2, task % blocks * kBlock);
}

}  // namespace

template <class T>
void s4d_coefficients_cpu(const ChannelScanShape& s, const S4dParameters<T>& p, T* coefficients) {
  for (int64_t i = 0; i < 2 * s.c * s.n; ++i) {
    const S4dState<T> state(p.log_dt[i / s.n], p.a_log[i], p.a_im[i]);
    const Complex<T> weight = T(2) * (Complex<T>{p.out[2 * i], p.out[2 * i + 1]} * state.hold);
    coefficients[4 * i] = state.factor.re, coefficients[4 * i + 1] = state.factor.im;
    coefficients[4 * i + 2] = weight.re, coefficients[4 * i + 3] = weight.im;
  }
}

template <class T>
void s4d_parameter_grads_cpu(const ChannelScanShape& s, const S4dParameters<T>& p, const T* sums,
                             const S4dParameterGrads<T>& g) {
  for (int64_t channel = 0; channel < 2 * s.c; ++channel) {
    g.log_dt[channel] = T(0);
    for (int64_t i = channel * s.n; i < (channel + 1) * s.n; ++i) {
      const S4dStateGrads<T> grads(S4dState<T>(p.log_dt[channel], p.a_log[i], p.a_im[i]),
                                   {p.out[2 * i], p.out[2 * i + 1]}, {sums[4 * i], sums[4 * i + 1]},
                                   {sums[4 * i + 2], sums[4 * i + 3]});
      g.log_dt[channel] += grads.log_dt;
      g.a_log[i] = grads.a_log, g.a_im[i] = grads.a_im;
      g.out[2 * i] = grads.out.re, g.out[2 * i + 1] = grads.out.im;
    }
  }
}

template <class T>
void s4d_scan_cpu(const S4dScan<T, T>& a) {
  const ChannelScanShape s = a.s;
  for_each_task(s, [&](int64_t image, int64_t direction, int64_t first) {
    Lane<T> x(s, a.coefficients, direction, first, false);
    const T* skip = a.skip + direction * s.c + first;
    T in[kBlock], out[kBlock];
    const int64_t begin = s.begin(image), length = s.length(image);
    for (int64_t p = 0; p < length; ++p) {
      const int64_t token = begin + ((direction == 0) != a.is_backward() ? p : length - 1 - p);
      const int64_t row = token * s.c + first;
      for (int64_t j = 0; j < x.width; ++j) {
        in[j] = a.is_backward() ? a.gy[s.y_at(token, direction, first + j)] : a.u[row + j];
        out[j] = skip[j] * in[j];
      }
      advance(x.factor_re.data(), x.factor_im.data(), x.weight_re.data(), x.weight_im.data(), x.re.data(),
              x.im.data(), in, out, s.n, x.width);
      for (int64_t j = 0; j < x.width; ++j)
        (a.is_backward() ? a.gu[direction * s.rows() * s.c + row + j]
                         : a.y[s.y_at(token, direction, first + j)]) = out[j];
    }
  });
}

template <class T>
void s4d_sums_cpu(const S4dSums<T, T>& a) {
  const ChannelScanShape s = a.s;
  for_each_task(s, [&](int64_t image, int64_t direction, int64_t first) {
    Lane<T> x(s, a.coefficients, direction, first, true);
    std::vector<T> sums(size_t(4 * s.n * kBlock), T(0));
    T gy[kBlock], by_u[kBlock] = {};
    const int64_t begin = s.begin(image), length = s.length(image);
    for (int64_t p = 0; p < length; ++p) {
      const int64_t token = begin + (direction == 0 ? p : length - 1 - p);
      const T* u = a.u + token * s.c + first;
      for (int64_t j = 0; j < x.width; ++j) {
        gy[j] = a.gy[s.y_at(token, direction, first + j)];
        by_u[j] += gy[j] * u[j];
      }
      advance_sums(x.factor_re.data(), x.factor_im.data(), x.re.data(), x.im.data(), x.slope_re.data(),
                   x.slope_im.data(), u, gy, sums.data(), s.n, x.width);
    }
    for (int64_t j = 0; j < x.width; ++j) {
      const int64_t channel = (image * 2 + direction) * s.c + first + j;
      a.skip[channel] = by_u[j];
      for (int64_t k = 0; k < s.n; ++k)
        for (int64_t part = 0; part < 4; ++part)
          a.states[(channel * s.n + k) * 4 + part] = sums[size_t((part * s.n + k) * kBlock + j)];
    }
  });
}

#define OCCAM_INSTANTIATE(T)                                                                        \
  template void s4d_coefficients_cpu(const ChannelScanShape&, const S4dParameters<T>&, T*);         \
  template void s4d_parameter_grads_cpu(const ChannelScanShape&, const S4dParameters<T>&, const T*, \
                                        const S4dParameterGrads<T>&);                               \
  template void s4d_scan_cpu(const S4dScan<T, T>&);                                                 \
  template void s4d_sums_cpu(const S4dSums<T, T>&)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(double);
#undef OCCAM_INSTANTIATE

}  // namespace occam::kernels
