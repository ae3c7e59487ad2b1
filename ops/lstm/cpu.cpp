#include <algorithm>
#include <vector>

#include "core/tensor.h"
#include "core/vmath.h"
#include "ops/blas.h"
#include "ops/lstm/kernel.h"

namespace occam::kernels {

namespace {

constexpr int64_t kRows = 64;  // images that one task carries through time

/// One step of one image: z holds w_ih x, `recurrent` w_hh h and `bias` both biases.
template <class T>
OCCAM_VECTORIZED void step(T* z, const T* recurrent, const T* bias, const T* c_before, T* c, T* h,
                           int64_t w) {
  for (int64_t j = 0; j < 4 * w; ++j) z[j] += recurrent[j] + bias[j];
  for (int64_t j = 0; j < 2 * w; ++j) z[j] = sigmoid_of(z[j]);
  for (int64_t j = 2 * w; j < 3 * w; ++j) z[j] = tanh_of(z[j]);
  for (int64_t j = 3 * w; j < 4 * w; ++j) z[j] = sigmoid_of(z[j]);
  for (int64_t j = 0; j < w; ++j) {
    c[j] = z[w + j] * c_before[j] + z[j] * z[2 * w + j];
    h[j] = z[3 * w + j] * tanh_of(c[j]);
  }
}

/// The step backwards: gh is the gradient of h_t, gc that of c_t (in) and of c_{t-1} (out).
template <class T>
OCCAM_VECTORIZED void step_back(const T* z, const T* c_before, const T* c, const T* gy, const T* gh, T* gc,
                                T* gz, int64_t w) {
  for (int64_t j = 0; j < w; ++j) {
    T i = z[j], f = z[w + j], g = z[2 * w + j], o = z[3 * w + j];
    T tc = tanh_of(c[j]), dh = gy[j] + gh[j], dc = gc[j] + dh * o * (1 - tc * tc);
    gz[j] = dc * g * i * (1 - i);
    gz[w + j] = dc * c_before[j] * f * (1 - f);
    gz[2 * w + j] = dc * i * (1 - g * g);
    gz[3 * w + j] = dh * tc * o * (1 - o);
    gc[j] = dc * f;
  }
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
    int64_t which = direction * s.h + head, start = (which * s.b + first) * s.t;
    std::vector<T> state(size_t(rows * w), T(0)), recurrent(size_t(rows * 4 * w)), zero(size_t(w), T(0));
    std::vector<T> bias(a.b_ih + which * 4 * w, a.b_ih + (which + 1) * 4 * w);
    for (int64_t j = 0; j < 4 * w; ++j) bias[size_t(j)] += a.b_hh[which * 4 * w + j];
    for (int64_t n = 0; n < s.t; ++n) {
      int64_t token = direction == 0 ? n : s.t - 1 - n, previous = direction == 0 ? token - 1 : token + 1;
      times_weights(true, rows, w, state.data(), w, a.w_hh + which * 4 * w * w, recurrent.data());
      for (int64_t r = 0; r < rows; ++r) {
        int64_t at = start + r * s.t + token, before = start + r * s.t + previous;
        T* h = state.data() + r * w;
        if (a.before != nullptr) std::copy(h, h + w, a.before + at * w);
        step(a.gates + at * 4 * w, recurrent.data() + r * 4 * w, bias.data(),
             n == 0 ? zero.data() : a.cells + before * w, a.cells + at * w, h, w);
        std::copy(h, h + w, a.y + (((first + r) * s.t + token) * s.h + head) * 2 * w + direction * w);
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
    std::vector<T> gh(size_t(rows * w), T(0)), gc(size_t(rows * w), T(0)), zero(size_t(w), T(0));
    for (int64_t n = s.t - 1; n >= 0; --n) {
      int64_t token = direction == 0 ? n : s.t - 1 - n, previous = direction == 0 ? token - 1 : token + 1;
      for (int64_t r = 0; r < rows; ++r) {
        int64_t at = start + r * s.t + token, before = start + r * s.t + previous;
        const T* gy = a.gy + (((first + r) * s.t + token) * s.h + head) * 2 * w + direction * w;
        step_back(a.gates + at * 4 * w, n == 0 ? zero.data() : a.cells + before * w, a.cells + at * w, gy,
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
