#include <algorithm>
#include <cmath>
#include <vector>

#include "core/vmath.h"
#include "ops/wkv/kernel.h"

namespace occam::kernels {

namespace {

constexpr int64_t kTile = 32;       // channels that a task carries through the tokens
constexpr double kNothing = -1e30;  // maximum of no terms: finite, so that differences are numbers

template <class T>
using Lanes = T[kTile];

/// sum of e^{k_i - w distance} v_i and of the same without v, both divided by e^max.
template <class T>
struct Averages {
  Lanes<T> num = {}, den = {}, max;
  Averages() { std::fill_n(max, kTile, T(kNothing)); }
};

/// All tokens passed so far are one further away, and token (k, v) joins at distance 0.
template <class T>
OCCAM_VECTORIZED void join(Averages<T>& a, const T* k, const T* v, const T* w, int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    const T old = a.max[n] - w[n], max = old > k[n] ? old : k[n];
    const T keep = exp_of(old - max), add = exp_of(k[n] - max);
    a.num[n] = keep * a.num[n] + add * v[n];
    a.den[n] = keep * a.den[n] + add;
    a.max[n] = max;
  }
}

template <class T>
OCCAM_VECTORIZED void output(const Averages<T>& p, const Averages<T>& q, const T* k, const T* v, const T* u,
                             T* y, T* den, T* max, int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    const T own = u[n] + k[n], sides = p.max[n] > q.max[n] ? p.max[n] : q.max[n];
    const T m = own > sides ? own : sides;
    const T a = exp_of(p.max[n] - m), b = exp_of(q.max[n] - m), e = exp_of(own - m);
    den[n] = a * p.den[n] + b * q.den[n] + e;
    y[n] = (a * p.num[n] + b * q.num[n] + e * v[n]) / den[n];
    max[n] = m;
  }
}

/// Gradients of the numerators, sum of e^{-log_sum_t - w distance} g_t, and of the denominators, the same of
/// -g_t y_t, both divided by e^max; moment_*: with a factor `distance` in each term.
template <class T>
struct Pulls {
  Lanes<T> num = {}, den = {}, moment_num = {}, moment_den = {}, max;
  Pulls() { std::fill_n(max, kTile, T(kNothing)); }
};

template <class T>
OCCAM_VECTORIZED void join(Pulls<T>& a, const T* g, const T* y, const T* log_sum, const T* w, int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    const T old = a.max[n] - w[n], max = old > -log_sum[n] ? old : -log_sum[n];
    const T keep = exp_of(old - max), add = exp_of(-log_sum[n] - max) * g[n];
    a.moment_num[n] = keep * (a.moment_num[n] + a.num[n]);
    a.moment_den[n] = keep * (a.moment_den[n] + a.den[n]);
    a.num[n] = keep * a.num[n] + add;
    a.den[n] = keep * a.den[n] - add * y[n];
    a.max[n] = max;
  }
}

/// What token (k, v) gets from one side, added to gk, gv and gw.
template <class T>
OCCAM_VECTORIZED void pull(const Pulls<T>& a, const T* k, const T* v, T* gk, T* gv, double* gw,
                           int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    const T e = exp_of(a.max[n] + k[n]);
    gv[n] += e * a.num[n];
    gk[n] += e * (v[n] * a.num[n] + a.den[n]);
    gw[n] -= double(e * (v[n] * a.moment_num[n] + a.moment_den[n]));
  }
}

/// Calls fn(sequence, first channel, channels) for every task.
template <class Fn>
void for_each_tile(const WkvShape& s, const Fn& fn) {
  const int64_t tiles = (s.c + kTile - 1) / kTile;
#pragma omp parallel for collapse(2)
  for (int64_t i = 0; i < s.b; ++i)
    for (int64_t tile = 0; tile < tiles; ++tile) fn(i, tile * kTile, std::min(kTile, s.c - tile * kTile));
}

/// One step of a decay over the whole sequence.
template <class T>
struct PerToken {
  Lanes<T> w;
  PerToken(const T* whole, int64_t count, int64_t length) {
    for (int64_t n = 0; n < count; ++n) w[n] = whole[n] / T(length);
  }
};

}  // namespace

template <class T>
void wkv_fwd_cpu(const WkvForward<T, T>& a) {
  const WkvShape& s = a.s;
  for_each_tile(s, [&](int64_t sequence, int64_t start, int64_t count) {
    const int64_t base = s.begin(sequence) * s.c + start, length = s.length(sequence);
    const PerToken<T> decay(a.w + start, count, length);
    std::vector<Averages<T>> after(static_cast<size_t>(length));  // of the tokens behind each one
    for (int64_t i = length - 1; i > 0; --i) {
      after[size_t(i - 1)] = after[size_t(i)];
      join(after[size_t(i - 1)], a.k + base + i * s.c, a.v + base + i * s.c, decay.w, count);
    }
    Averages<T> before;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t at = base + i * s.c;
      Lanes<T> den, max;
      output(before, after[size_t(i)], a.k + at, a.v + at, a.u + start, a.y + at, den, max, count);
      if (a.log_sum != nullptr)
        for (int64_t n = 0; n < count; ++n) a.log_sum[at + n] = max[n] + std::log(den[n]);
      join(before, a.k + at, a.v + at, decay.w, count);
    }
  });
}

template <class T>
void wkv_bwd_cpu(const WkvBackward<T, T>& a) {
  const WkvShape& s = a.s;
  std::vector<double> gw(size_t(s.b * s.c)), gu(size_t(s.b * s.c));
  for_each_tile(s, [&](int64_t sequence, int64_t start, int64_t count) {
    const int64_t base = s.begin(sequence) * s.c + start, length = s.length(sequence);
    const PerToken<T> decay(a.w + start, count, length);
    double* sums_w = gw.data() + sequence * s.c + start;
    double* sums_u = gu.data() + sequence * s.c + start;
    Pulls<T> before;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t at = base + i * s.c;
      for (int64_t n = 0; n < count; ++n) {
        const T own = exp_of(a.u[start + n] + a.k[at + n] - a.log_sum[at + n]) * a.gy[at + n];
        a.gv[at + n] = own;
        a.gk[at + n] = own * (a.v[at + n] - a.y[at + n]);
        sums_u[n] += double(a.gk[at + n]);
      }
      pull(before, a.k + at, a.v + at, a.gk + at, a.gv + at, sums_w, count);
      join(before, a.gy + at, a.y + at, a.log_sum + at, decay.w, count);
    }
    Pulls<T> after;
    for (int64_t i = length - 1; i >= 0; --i) {
      const int64_t at = base + i * s.c;
      pull(after, a.k + at, a.v + at, a.gk + at, a.gv + at, sums_w, count);
      join(after, a.gy + at, a.y + at, a.log_sum + at, decay.w, count);
    }
    for (int64_t n = 0; length > 0 && n < count; ++n) sums_w[n] /= double(length);
  });
  for (int64_t n = 0; n < s.c; ++n) {
    double sum_w = 0, sum_u = 0;
    for (int64_t i = 0; i < s.b; ++i) sum_w += gw[size_t(i * s.c + n)], sum_u += gu[size_t(i * s.c + n)];
    a.gw[n] = T(sum_w), a.gu[n] = T(sum_u);
  }
}

template void wkv_fwd_cpu(const WkvForward<float, float>&);
template void wkv_fwd_cpu(const WkvForward<double, double>&);
template void wkv_bwd_cpu(const WkvBackward<float, float>&);
template void wkv_bwd_cpu(const WkvBackward<double, double>&);

}  // namespace occam::kernels
