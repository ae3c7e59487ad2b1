#include <algorithm>
#include <cmath>
#include <vector>

#include "core/vmath.h"
#include "ops/selective_scan/kernel.h"

namespace occam::kernels {

namespace {

constexpr int64_t kBlock = 64;  // channels in the inner loops
constexpr int64_t kChunk = 32;  // tokens whose states backward keeps at a time

template <class T>
T softplus(T x) {
  return x > T(20) ? x : std::log1p(std::exp(x));
}

/// What the inner loops see of a token: dt and dt u of a block of channels, B and C of the direction.
template <class T>
struct Token {
  T dt[kBlock], du[kBlock];
};

/// h [n][kBlock] one step on; y += C . h where y is given.
template <class T>
OCCAM_VECTORIZED void advance(const T* rate, const Token<T>& x, const T* in, const T* out, T* h, T* y,
                              int64_t n, int64_t width) {
  for (int64_t k = 0; k < n; ++k) {
    const T b = in[k], *a = rate + k * kBlock;
    T* state = h + k * kBlock;
    for (int64_t j = 0; j < width; ++j) state[j] = exp_of(x.dt[j] * a[j]) * state[j] + b * x.du[j];
    if (y == nullptr) continue;
    const T c = out[k];
    for (int64_t j = 0; j < width; ++j) y[j] += c * state[j];
  }
}

/// A step backwards. `before` and `h`: states before and after the step; d: what the step after it gives
/// back, in and out. Adds to the gradients of B, C, A, of dt u (g_du) and of dt by way of exp(dt A) (g_dt).
template <class T>
OCCAM_VECTORIZED void retreat(const T* rate, const Token<T>& x, const T* in, const T* out, const T* gy,
                              const T* before, const T* h, T* d, T* g_in, T* g_out, T* g_a, T* g_du, T* g_dt,
                              int64_t n, int64_t width) {
  for (int64_t k = 0; k < n; ++k) {
    const int64_t at = k * kBlock;
    const T b = in[k], c = out[k];
    T to_in = 0, to_out = 0;
#pragma omp simd reduction(+ : to_in, to_out)
    for (int64_t j = 0; j < width; ++j) {
      const T a = exp_of(x.dt[j] * rate[at + j]), dh = d[at + j] + gy[j] * c;
      const T slope = dh * before[at + j] * a;  // by dt A
      to_in += dh * x.du[j];
      to_out += gy[j] * h[at + j];
      g_du[j] += dh * b;
      g_dt[j] += slope * rate[at + j];
      g_a[at + j] += slope * x.dt[j];
      d[at + j] = a * dh;
    }
    g_in[k] += to_in;
    g_out[k] += to_out;
  }
}

/// A block of channels of one image and direction.
template <class T>
struct Lane {
  const SelectiveScan<T>& a;
  int64_t direction, first, width, begin, length;
  std::vector<T> rate;  // A [n][kBlock]

  Lane(const SelectiveScan<T>& args, int64_t image, int64_t direction_, int64_t first_)
      : a(args),
        direction(direction_),
        first(first_),
        width(std::min(kBlock, args.s.c - first_)),
        begin(args.s.begin(image)),
        length(args.s.length(image)),
        rate(size_t(args.s.n * kBlock), T(0)) {
    for (int64_t j = 0; j < width; ++j)
      for (int64_t k = 0; k < a.s.n; ++k)
        rate[size_t(k * kBlock + j)] = -std::exp(a.a_log[(direction * a.s.c + first + j) * a.s.n + k]);
  }
  int64_t token(int64_t position) const {
    return begin + (direction == 0 ? position : length - 1 - position);
  }
  int64_t row(int64_t position) const { return token(position) * 2 + direction; }
  Token<T> at(int64_t position) const {
    Token<T> x;
    const T *u = a.u + row(position) * a.s.c + first, *delta = a.delta + row(position) * a.s.c + first;
    for (int64_t j = 0; j < width; ++j) x.dt[j] = softplus(delta[j]), x.du[j] = x.dt[j] * u[j];
    return x;
  }
  const T* in(int64_t position) const { return a.in + row(position) * a.s.n; }
  const T* out(int64_t position) const { return a.out + row(position) * a.s.n; }
};

}  // namespace

template <class T>
void selective_scan_fwd_cpu(const SelectiveScan<T>& a) {
  const ChannelScanShape s = a.s;
  const int64_t blocks = (s.c + kBlock - 1) / kBlock, tasks = s.b * 2 * blocks;
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < tasks; ++task) {
    const Lane<T> lane(a, task / blocks / 2, task / blocks % 2, task % blocks * kBlock);
    std::vector<T> h(size_t(s.n * kBlock), T(0));
    T y[kBlock];
    for (int64_t p = 0; p < lane.length; ++p) {
      const T *u = a.u + lane.row(p) * s.c + lane.first, *skip = a.skip + lane.direction * s.c + lane.first;
      for (int64_t j = 0; j < lane.width; ++j) y[j] = skip[j] * u[j];
      advance(lane.rate.data(), lane.at(p), lane.in(p), lane.out(p), h.data(), y, s.n, lane.width);
      for (int64_t j = 0; j < lane.width; ++j)
        a.y[s.y_at(lane.token(p), lane.direction, lane.first + j)] = y[j];
    }
  }
}

template <class T>
void selective_scan_bwd_cpu(const SelectiveScanBackward<T, T>& g) {
  const SelectiveScan<T>& a = g.forward;
  const ChannelScanShape s = a.s;
  const int64_t size = s.n * kBlock;
  // Blocks of channels follow one another: they add to the same gradients of B and C.
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < s.b * 2; ++task) {
    const int64_t image = task / 2, direction = task % 2, start = s.begin(image), length = s.length(image);
    const int64_t chunks = (length + kChunk - 1) / kChunk;
    std::vector<T> starts(size_t(chunks * size)), states(size_t((kChunk + 1) * size)), d(size_t(size), T(0)),
        g_a(size_t(size), T(0));
    for (int64_t p = 0; p < length; ++p) {
      const int64_t row = (start + p) * 2 + direction;
      std::fill_n(g.g_in + row * s.n, s.n, T(0));
      std::fill_n(g.g_out + row * s.n, s.n, T(0));
    }
    for (int64_t first = 0; first < s.c; first += kBlock) {
      const Lane<T> lane(a, image, direction, first);
      const T* skip = a.skip + direction * s.c + first;
      T g_skip[kBlock] = {}, g_du[kBlock], g_dt[kBlock], gy[kBlock];
      std::vector<T> h(size_t(size), T(0));
      for (int64_t p = 0; p < length; ++p) {
        if (p % kChunk == 0) std::copy(h.begin(), h.end(), starts.begin() + p / kChunk * size);
        advance<T>(lane.rate.data(), lane.at(p), lane.in(p), nullptr, h.data(), nullptr, s.n, lane.width);
      }
      std::fill(d.begin(), d.end(), T(0));
      std::fill(g_a.begin(), g_a.end(), T(0));
      for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
        const int64_t begin = chunk * kChunk, end = std::min(length, begin + kChunk);
        std::copy_n(starts.begin() + chunk * size, size, states.begin());
        for (int64_t p = begin; p < end; ++p) {
          T* next = states.data() + (p - begin + 1) * size;
          std::copy_n(next - size, size, next);
          advance<T>(lane.rate.data(), lane.at(p), lane.in(p), nullptr, next, nullptr, s.n, lane.width);
        }
        for (int64_t p = end - 1; p >= begin; --p) {
          const int64_t row = lane.row(p), at = row * s.c + first;
          const Token<T> x = lane.at(p);
          for (int64_t j = 0; j < lane.width; ++j) {
            gy[j] = g.gy[s.y_at(lane.token(p), direction, first + j)];
            g_du[j] = g_dt[j] = T(0);
          }
          const T* before = states.data() + (p - begin) * size;
          retreat(lane.rate.data(), x, lane.in(p), lane.out(p), gy, before, before + size, d.data(),
                  g.g_in + row * s.n, g.g_out + row * s.n, g_a.data(), g_du, g_dt, s.n, lane.width);
          for (int64_t j = 0; j < lane.width; ++j) {
            g.gu[at + j] = g_du[j] * x.dt[j] + gy[j] * skip[j];
            g.g_delta[at + j] = (g_dt[j] + g_du[j] * a.u[at + j]) * sigmoid_of(a.delta[at + j]);
            g_skip[j] += gy[j] * a.u[at + j];
          }
        }
      }
      for (int64_t j = 0; j < lane.width; ++j) {
        const int64_t channel = (image * 2 + direction) * s.c + first + j;
        g.g_skip[channel] = g_skip[j];
        for (int64_t k = 0; k < s.n; ++k)
          g.g_a[channel * s.n + k] = g_a[size_t(k * kBlock + j)] * lane.rate[size_t(k * kBlock + j)];
      }
    }
  }
}

template void selective_scan_fwd_cpu(const SelectiveScan<float>&);
template void selective_scan_fwd_cpu(const SelectiveScan<double>&);
template void selective_scan_bwd_cpu(const SelectiveScanBackward<float, float>&);
template void selective_scan_bwd_cpu(const SelectiveScanBackward<double, double>&);

}  // namespace occam::kernels
