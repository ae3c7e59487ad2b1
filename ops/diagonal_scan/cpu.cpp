#include <algorithm>
#include <vector>

#include "core/vmath.h"
#include "ops/diagonal_scan/kernel.h"

namespace occam::kernels {

namespace {

constexpr int64_t kBlock = 128;  // channels that one task carries along the tokens

/// sigmoid that stays above 0, so that f + i is never 0.
template <class T>
inline T gate(T x) {
  return sigmoid_of(x < T(-80) ? T(-80) : x);
}

/// One step of `width` channels: p are the parts of a token, h the state, in and out.
template <Cell kCell, class T>
OCCAM_VECTORIZED void step(const T* p0, const T* p1, const T* p2, const T* const* bias, T* h, T* y,
                           int64_t width) {
  const T *c0 = bias[0], *c1 = bias[1], *c2 = bias[2];
  for (int64_t j = 0; j < width; ++j) {
    if constexpr (kCell == Cell::plain) {
      h[j] = p0[j] * h[j] + p1[j];
    } else {
      T v = kCell == Cell::min_gru ? p1[j] + c1[j] : p2[j] + c2[j];
      T value = v >= T(0) ? v + T(0.5) : sigmoid_of(v), fresh;
      if constexpr (kCell == Cell::min_gru) {
        fresh = sigmoid_of(p0[j] + c0[j]);
      } else {
        T f = gate(p0[j] + c0[j]), i = gate(p1[j] + c1[j]);
        fresh = i / (f + i);
      }
      h[j] = h[j] + fresh * (value - h[j]);
    }
    y[j] = h[j];
  }
}

/// The step backwards: d is a_{t+1} times the gradient of h_{t+1} (in) and a_t times that of h_t (out).
template <Cell kCell, class T>
OCCAM_VECTORIZED void step_back(const T* p0, const T* p1, const T* p2, const T* const* bias, const T* before,
                                const T* gy, T* d, T* g0, T* g1, T* g2, int64_t width) {
  const T *c0 = bias[0], *c1 = bias[1], *c2 = bias[2];
  for (int64_t j = 0; j < width; ++j) {
    T dh = gy[j] + d[j];
    if constexpr (kCell == Cell::plain) {
      d[j] = p0[j] * dh;
      g0[j] = dh * before[j];
      g1[j] = dh;
    } else {
      T v = kCell == Cell::min_gru ? p1[j] + c1[j] : p2[j] + c2[j], s = sigmoid_of(v);
      T value = v >= T(0) ? v + T(0.5) : s, slope = v >= T(0) ? T(1) : s * (T(1) - s);
      if constexpr (kCell == Cell::min_gru) {
        T fresh = sigmoid_of(p0[j] + c0[j]);
        d[j] = (T(1) - fresh) * dh;
        g0[j] = dh * (value - before[j]) * fresh * (T(1) - fresh);
        g1[j] = dh * fresh * slope;
      } else {
        T f = gate(p0[j] + c0[j]), i = gate(p1[j] + c1[j]);
        T a = f / (f + i), fresh = i / (f + i), ga = dh * (before[j] - value) * a * fresh;
        d[j] = a * dh;
        g0[j] = ga * (T(1) - f);
        g1[j] = -ga * (T(1) - i);
        g2[j] = dh * fresh * slope;
      }
    }
  }
}

/// Calls fn(image, head, direction, first channel, channels) for every task.
template <class Fn>
void for_each_task(const DiagonalScanShape& s, const Fn& fn) {
  int64_t blocks = (s.w + kBlock - 1) / kBlock, tasks = s.b * s.h * 2 * blocks;
#pragma omp parallel for schedule(static) if (s.rows() * 2 * s.h * s.w > 4096)
  for (int64_t task = 0; task < tasks; ++task) {
    int64_t chain = task / blocks, first = task % blocks * kBlock;
    int64_t direction = chain % 2, head = chain / 2 % s.h, image = chain / 2 / s.h;
    fn(image, head, direction, first, std::min(kBlock, s.w - first));
  }
}

/// Bias of a task's channels by part; zeros where there is none.
template <class T>
struct Bias {
  T zero[kBlock] = {};
  const T* part[3] = {zero, zero, zero};
  Bias(const T* bias, int parts, const DiagonalScanShape& s, int64_t head, int64_t direction, int64_t first) {
    for (int i = 0; bias != nullptr && i < parts; ++i)
      part[i] = bias + ((direction * s.h + head) * parts + i) * s.w + first;
  }
};

template <Cell kCell, class T>
void forward(const DiagonalScan<T>& a) {
  const DiagonalScanShape s = a.s;
  for_each_task(s, [&](int64_t image, int64_t head, int64_t direction, int64_t first, int64_t width) {
    const Bias<T> bias(a.bias, parts_of(kCell), s, head, direction, first);
    const int64_t begin = s.begin(image), length = s.length(image);
    T h[kBlock] = {};
    for (int64_t n = 0; n < length; ++n) {
      int64_t token = begin + (direction == 0 ? n : length - 1 - n);
      int64_t row = (token * s.h + head) * 2 + direction, at = row * a.stride + first;
      step<kCell>(a.part[0] + at, a.part[1] + at, parts_of(kCell) > 2 ? a.part[2] + at : nullptr, bias.part,
                  h, a.y + row * s.w + first, width);
    }
  });
}

template <Cell kCell, class T>
void backward(const DiagonalScanBackward<T>& a) {
  const DiagonalScanShape s = a.s;
  for_each_task(s, [&](int64_t image, int64_t head, int64_t direction, int64_t first, int64_t width) {
    const Bias<T> bias(a.bias, parts_of(kCell), s, head, direction, first);
    constexpr bool kThree = parts_of(kCell) > 2;
    const int64_t begin = s.begin(image), length = s.length(image);
    T d[kBlock] = {}, zero[kBlock] = {};
    for (int64_t n = length - 1; n >= 0; --n) {
      int64_t token = begin + (direction == 0 ? n : length - 1 - n);
      int64_t previous = direction == 0 ? token - 1 : token + 1;
      int64_t row = (token * s.h + head) * 2 + direction, at = row * a.stride + first;
      int64_t row_before = (previous * s.h + head) * 2 + direction;
      step_back<kCell>(a.part[0] + at, a.part[1] + at, kThree ? a.part[2] + at : nullptr, bias.part,
                       n == 0 ? zero : a.y + row_before * s.w + first, a.gy + row * s.w + first, d,
                       a.g_part[0] + at, a.g_part[1] + at, kThree ? a.g_part[2] + at : nullptr, width);
    }
  });
}

}  // namespace

template <class T>
void diagonal_scan_fwd_cpu(const DiagonalScan<T>& a) {
  if (a.cell == Cell::plain)
    forward<Cell::plain>(a);
  else if (a.cell == Cell::min_gru)
    forward<Cell::min_gru>(a);
  else
    forward<Cell::min_lstm>(a);
}
template <class T>
void diagonal_scan_bwd_cpu(const DiagonalScanBackward<T>& a) {
  if (a.cell == Cell::plain)
    backward<Cell::plain>(a);
  else if (a.cell == Cell::min_gru)
    backward<Cell::min_gru>(a);
  else
    backward<Cell::min_lstm>(a);
}

template void diagonal_scan_fwd_cpu(const DiagonalScan<float>&);
template void diagonal_scan_fwd_cpu(const DiagonalScan<double>&);
template void diagonal_scan_bwd_cpu(const DiagonalScanBackward<float>&);
template void diagonal_scan_bwd_cpu(const DiagonalScanBackward<double>&);

}  // namespace occam::kernels
