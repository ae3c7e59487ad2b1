#include <algorithm>
#include <vector>

#include "core/tensor.h"
#include "core/vmath.h"
#include "ops/blas.h"
#include "ops/lstm/kernel.h"

namespace occam::kernels {

namespace {

constexpr int64_t kRows = 64;  // images that one task carries through time

/// out = the activated gates of z + recurrent + bias (z: w_ih x; both biases in one).
template <class T>
OCCAM_VECTORIZED void gates_of(const T* z, const T* recurrent, const T* bias, T* out, int64_t w) {
  for (int64_t j = 0; j < 4 * w; ++j) out[j] = z[j] + recurrent[j] + bias[j];
  for (int64_t j = 0; j < 2 * w; ++j) out[j] = sigmoid_of(out[j]);
  for (int64_t j = 2 * w; j < 3 * w; ++j) out[j] = tanh_of(out[j]);
  for (int64_t j = 3 * w; j < 4 * w; ++j) out[j] = sigmoid_of(out[j]);
}

/// One step of one image: c of the step before in, of this one out.
template <class T>
OCCAM_VECTORIZED void step(const T* gates, T* c, T* h, int64_t w) {
  for (int64_t j = 0; j < w; ++j) {
    c[j] = gates[w + j] * c[j] + gates[j] * gates[2 * w + j];
    h[j] = gates[3 * w + j] * tanh_of(c[j]);
  }
}

/// The step backwards: gh is the gradient of h_t, gc that of c_t (in) and of c_{t-1} (out).
template <class T>
OCCAM_VECTORIZED void step_back(const T* gates, const T* c_before, const T* gy, const T* gh, T* gc, T* gz,
                                int64_t w) {
  for (int64_t j = 0; j < w; ++j) {
    T i = gates[j], f = gates[w + j], g = gates[2 * w + j], o = gates[3 * w + j];
    T tc = tanh_of(f * c_before[j] + i * g), dh = gy[j] + gh[j], dc = gc[j] + dh * o * (1 - tc * tc);
    gz[j] = dc * g * i * (1 - i);
    gz[w + j] = dc * c_before[j] * f * (1 - f);
    gz[2 * w + j] = dc * i * (1 - g * g);
    gz[3 * w + j] = dh * tc * o * (1 - o);
    gc[j] = dc * f;
  }
}

/// Both biases of a (direction, head) in one.
template <class T, class Args>
std::vector<T> bias_of(const Args& a, int64_t which) {
  const int64_t gates = 4 * a.s.w;
  std::vector<T> bias(a.b_ih + which * gates, a.b_ih + (which + 1) * gates);
  for (int64_t j = 0; j < gates; ++j) bias[size_t(j)] += a.b_hh[which * gates + j];
  return bias;
}

/// Calls fn(direction, head, first image, images) for every task.
template <class Fn>
void for_each_task(const LstmShape& s, const Fn& fn) {
  int64_t parts = (s.b + kRows - 1) / kRows, tasks = 2 * s.h * parts;
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < tasks; ++task) {
    int64_t part = task % parts, head = task / parts % s.h, first = part * kRows;
    fn(task / parts / s.h, head, first, std::min(kRows, s.b - first));
  }
}

/// d = a w_hh^T (transposed) or a w_hh; rows of `a` are lda apart.
template <class T>
void times_weights(bool transposed, int64_t rows, int64_t w, const T* a, int64_t lda, const T* w_hh, T* d) {
  DType dtype = dtype_of<T>;
  matrix_product({.dtype_ab = dtype,
                  .dtype_d = dtype,
                  .trans_b = transposed,
                  .m = rows,
                  .n = transposed ? 4 * w : w,
                  .k = transposed ? w : 4 * w,
                  .lda = lda},
                 a, w_hh, d);
}

}  // namespace

template <class T>
void lstm_fwd_cpu(const LstmForward<T, T>& a) {
  const LstmShape s = a.s;
  const int64_t w = s.w;
  for_each_task(s, [&](int64_t direction, int64_t head, int64_t first, int64_t rows) {
    int64_t which = direction * s.h + head;
    std::vector<T> h(size_t(rows * w), T(0)), c(size_t(rows * w), T(0)), recurrent(size_t(rows * 4 * w)),
        gates(size_t(4 * w)), bias = bias_of<T>(a, which);
    for (int64_t n = 0; n < s.t; ++n) {
      int64_t token = direction == 0 ? n : s.t - 1 - n;
      times_weights(true, rows, w, h.data(), w, a.w_hh + which * 4 * w * w, recurrent.data());
      for (int64_t r = 0; r < rows; ++r) {
        int64_t row = (first + r) * s.t + token, out = (row * s.h + head) * 2 * w + direction * w;
        T *hr = h.data() + r * w, *cr = c.data() + r * w;
        gates_of(a.z + (which * s.b * s.t + row) * 4 * w, recurrent.data() + r * 4 * w, bias.data(),
                 gates.data(), w);
        step(gates.data(), cr, hr, w);
        std::copy(hr, hr + w, a.y + out);
        if (a.cells != nullptr) std::copy(cr, cr + w, a.cells + out);
      }
    }
  });
}

template <class T>
void lstm_bwd_cpu(const LstmBackward<T, T>& a) {
  const LstmShape s = a.s;
  const int64_t w = s.w;
  for_each_task(s, [&](int64_t direction, int64_t head, int64_t first, int64_t rows) {
    int64_t which = direction * s.h + head, start = (which * s.b + first) * s.t;
    std::vector<T> gh(size_t(rows * w), T(0)), gc(size_t(rows * w), T(0)), zero(size_t(4 * w), T(0)),
        gates(size_t(4 * w)), bias = bias_of<T>(a, which);
    for (int64_t n = s.t - 1; n >= 0; --n) {
      int64_t token = direction == 0 ? n : s.t - 1 - n, previous = direction == 0 ? -1 : 1;
      for (int64_t r = 0; r < rows; ++r) {
        int64_t at = start + r * s.t + token,
                out = (((first + r) * s.t + token) * s.h + head) * 2 * w + direction * w;
        gates_of(a.z + at * 4 * w, zero.data(), bias.data(), gates.data(), w);
        step_back(gates.data(), n == 0 ? zero.data() : a.cells + out + previous * s.h * 2 * w, a.gy + out,
                  gh.data() + r * w, gc.data() + r * w, a.g_gates + at * 4 * w, w);
      }
      // Rows of one token of neighbouring images are t rows apart.
      times_weights(false, rows, w, a.g_gates + (start + token) * 4 * w, s.t * 4 * w,
                    a.w_hh + which * 4 * w * w, gh.data());
    }
  });
}

template void lstm_fwd_cpu(const LstmForward<float, float>&);
template void lstm_fwd_cpu(const LstmForward<double, double>&);
template void lstm_bwd_cpu(const LstmBackward<float, float>&);
template void lstm_bwd_cpu(const LstmBackward<double, double>&);

}  // namespace occam::kernels
