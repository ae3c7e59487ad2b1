#include <algorithm>
#include <memory>
#include <vector>

#include "core/tensor.h"
#include "core/vmath.h"
#include "ops/blas.h"
#include "ops/lstm/kernel.h"

namespace occam::kernels {

namespace {

constexpr int64_t kRows = 64;  // images that one task carries through time

/// out = the gates of z + recurrent + bias (z: w_ih x; both biases in one), activated but for the two parts
/// of a GRU's n.
template <class T>
OCCAM_VECTORIZED void gates_of(Cell cell, const T* z, const T* recurrent, const T* bias, T* out, int64_t w) {
  for (int64_t j = 0; j < 4 * w; ++j) out[j] = z[j] + recurrent[j] + bias[j];
  for (int64_t j = 0; j < 2 * w; ++j) out[j] = sigmoid_of(out[j]);
  if (cell == Cell::gru) return;
  for (int64_t j = 2 * w; j < 3 * w; ++j) out[j] = tanh_of(out[j]);
  for (int64_t j = 3 * w; j < 4 * w; ++j) out[j] = sigmoid_of(out[j]);
}

/// One step of one image: c of the step before in, of this one out (of a GRU: h in f32). z and recurrent as
/// above; all of a unit in one go, so that their chains of operations overlap.
template <class T>
[[gnu::always_inline]] inline void one_step(Cell cell, const T* __restrict z, const T* __restrict recurrent,
                                            const T* __restrict bias, T* __restrict c, T* __restrict h,
                                            int64_t w) {
  auto gate = [&](int64_t j) __attribute__((always_inline)) { return z[j] + recurrent[j] + bias[j]; };
  if (cell == Cell::gru) {
    for (int64_t j = 0; j < w; ++j) {
      T r = sigmoid_of(gate(j)), u = sigmoid_of(gate(w + j)),
        n = tanh_of(gate(2 * w + j) + r * gate(3 * w + j));
      h[j] = c[j] = n + u * (c[j] - n);
    }
    return;
  }
  for (int64_t j = 0; j < w; ++j) {
    c[j] = sigmoid_of(gate(w + j)) * c[j] + sigmoid_of(gate(j)) * tanh_of(gate(2 * w + j));
    h[j] = sigmoid_of(gate(3 * w + j)) * tanh_of(c[j]);
  }
}
template <class T>
OCCAM_VECTORIZED void step(Cell cell, const T* z, const T* recurrent, const T* bias, T* c, T* h, int64_t w) {
  one_step(cell, z, recurrent, bias, c, h, w);
}
template <class T>
OCCAM_WIDE void step_wide(Cell cell, const T* z, const T* recurrent, const T* bias, T* c, T* h, int64_t w) {
  one_step(cell, z, recurrent, bias, c, h, w);
}

/// The step backwards: gh is the gradient of h_t, gc that of c_t (in) and of c_{t-1} (out); of a GRU, whose c
/// is h, gc is what reaches h_{t-1} past the gates.
template <class T>
OCCAM_VECTORIZED void step_back(Cell cell, const T* gates, const T* c_before, const T* gy, const T* gh, T* gc,
                                T* gz, int64_t w) {
  if (cell == Cell::gru) {
    for (int64_t j = 0; j < w; ++j) {
      T r = gates[j], u = gates[w + j], n = tanh_of(gates[2 * w + j] + r * gates[3 * w + j]);
      T dh = gy[j] + gh[j] + gc[j], dn = dh * (1 - u) * (1 - n * n);
      gz[j] = dn * gates[3 * w + j] * r * (1 - r);
      gz[w + j] = dh * (c_before[j] - n) * u * (1 - u);
      gz[2 * w + j] = dn;
      gz[3 * w + j] = dn * r;
      gc[j] = dh * u;
    }
    return;
  }
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

// The product of each step of the forward pass. For one image it is a matrix times a vector, 64 x 256 at the
// usual width: too small for a library call, the processor waits unless many sums are on their way at once,
// and the matrix, 64 KB, comes from the L2 cache. What the L1 cache still holds of it is what was read last,
// so every other step goes through the matrix backwards.

constexpr int64_t kColumns = 64;  // the matrix comes in blocks of so many columns, the last ones 0
constexpr int kSums = 8;          // vectors of sums at once: as many as hide the latency of an addition

/// w_hh [4w,w] as blocks [w,kColumns] for times_states, from a multiple of 64 bytes on.
template <class T>
T* transposed(const T* w_hh, int64_t w, int64_t columns, std::vector<T>& room) {
  constexpr int64_t kTile = 16, kLine = 64 / sizeof(T);
  room.assign(size_t(w * columns + kLine), T(0));
  T* out =
      room.data() + (kLine - int64_t(reinterpret_cast<uintptr_t>(room.data()) / sizeof(T) % kLine)) % kLine;
  for (int64_t j0 = 0; j0 < 4 * w; j0 += kColumns)
    for (int64_t k0 = 0; k0 < w; k0 += kTile)
      for (int64_t j = j0; j < std::min(4 * w, j0 + kColumns); ++j) {
        const T* from = w_hh + j * w + k0;
        T* to = out + (j0 / kColumns * w + k0) * kColumns + j - j0;
        if (k0 + kTile <= w)
#pragma GCC unroll 16
          for (int64_t k = 0; k < kTile; ++k) to[k * kColumns] = from[k];
        else
          for (int64_t k = 0; k < w - k0; ++k) to[k * kColumns] = from[k];
      }
  return out;
}

/// out[kImages, kPacks * kPack] = h[kImages, w] times so many columns of a block; all sums in registers, of
/// kParts parts of the terms apart.
template <int kImages, int kPacks, int kParts, int kPack, class T>
[[gnu::always_inline]] inline void times_columns(const T* h, const T* block, T* out, int64_t w,
                                                 int64_t columns, bool back) {
  typedef T V __attribute__((vector_size(kPack * sizeof(T)), aligned(sizeof(T)), may_alias));
  V sum[kParts][kImages][kPacks] = {};
  auto add = [&](int64_t n, int part) __attribute__((always_inline)) {
    const int64_t k = back ? w - 1 - n : n;
    const V* row = reinterpret_cast<const V*>(block + k * kColumns);
#pragma GCC unroll 8
    for (int r = 0; r < kImages; ++r)
#pragma GCC unroll 8
      for (int q = 0; q < kPacks; ++q) sum[part][r][q] += h[r * w + k] * row[q];
  };
  int64_t n = 0;
  for (; n + kParts <= w; n += kParts)
#pragma GCC unroll 8
    for (int part = 0; part < kParts; ++part) add(n + part, part);
  for (; n < w; ++n) add(n, 0);
#pragma GCC unroll 8
  for (int r = 0; r < kImages; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < kPacks; ++q) {
#pragma GCC unroll 8
      for (int part = 1; part < kParts; ++part) sum[0][r][q] += sum[part][r][q];
      reinterpret_cast<V*>(out + r * columns)[q] = sum[0][r][q];
    }
}

/// out [images,columns] = h [images,w] times the matrix, by vectors of kPack.
template <int kPack, class T>
[[gnu::always_inline]] inline void times_matrix(const T* h, const T* matrix, T* out, int64_t images,
                                                int64_t w, int64_t columns, bool back) {
  constexpr int kPacks = std::min(kSums, int(kColumns) / kPack);
  const int64_t blocks = columns / kColumns;
  for (int64_t n = 0; n < blocks; ++n) {
    const int64_t which = back ? blocks - 1 - n : n;
    const T* block = matrix + which * w * kColumns;
    T* to = out + which * kColumns;
    int64_t r = 0;
    for (; r + 4 <= images; r += 4)
      for (int64_t j = 0; j < kColumns; j += 2 * kPack)
        times_columns<4, 2, 1, kPack>(h + r * w, block + j, to + r * columns + j, w, columns, back);
    for (; r < images; ++r)
      for (int64_t j = 0; j < kColumns; j += kPacks * kPack)
        times_columns<1, kPacks, kSums / kPacks, kPack>(h + r * w, block + j, to + r * columns + j, w,
                                                        columns, back);
  }
}
template <class T>
OCCAM_VECTORIZED void times_states(const T* h, const T* matrix, T* out, int64_t images, int64_t w,
                                   int64_t columns, bool back) {
  times_matrix<32 / sizeof(T)>(h, matrix, out, images, w, columns, back);
}
template <class T>
OCCAM_WIDE void times_states_wide(const T* h, const T* matrix, T* out, int64_t images, int64_t w,
                                  int64_t columns, bool back) {
  times_matrix<64 / sizeof(T)>(h, matrix, out, images, w, columns, back);
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

/// Steps until all of some images are through.
int64_t longest(const LstmShape& s, int64_t first, int64_t images) {
  int64_t most = 0;
  for (int64_t i = first; i < first + images; ++i) most = std::max(most, s.length(i));
  return most;
}

}  // namespace

template <class T>
void lstm_fwd_cpu(const LstmForwardCpu<T>& a) {
  const LstmShape s = a.s;
  const int64_t w = s.w;
  const bool wide = wide_vectors();
  for_each_task(s, [&](int64_t direction, int64_t head, int64_t first, int64_t rows) {
    int64_t which = direction * s.h + head;
    const int64_t columns = (4 * w + kColumns - 1) / kColumns * kColumns;
    const std::vector<T> bias = bias_of<T>(a, which);
    std::vector<T> room, h(size_t(rows * w), T(0)), c(size_t(rows * w), T(0)),
        recurrent(size_t(rows * columns));
    // z of the task's rows, which follow one another: of one image it stays in the L2 cache until it is read.
    const int64_t begin = s.begin(first), count = s.begin(first + rows) - begin;
    const std::unique_ptr<T[]> z(new T[size_t(count * 4 * w)]);
    matrix_product({.dtype_ab = dtype_of<T>,
                    .dtype_d = dtype_of<T>,
                    .trans_b = true,
                    .m = count,
                    .n = 4 * w,
                    .k = a.width,
                    .lda = s.h * a.width},
                   a.x + (begin * s.h + head) * a.width, a.w_ih + which * 4 * w * a.width, z.get());
    const T* matrix = transposed(a.w_hh + which * 4 * w * w, w, columns, room);
    for (int64_t n = 0; n < longest(s, first, rows); ++n) {
      (wide ? times_states_wide<T> : times_states<T>)(h.data(), matrix, recurrent.data(), rows, w, columns,
                                                      n % 2 == 1);
      for (int64_t r = 0; r < rows; ++r) {
        if (n >= s.length(first + r)) continue;
        int64_t row = s.row(first + r, direction, n), out = (row * s.h + head) * 2 * w + direction * w;
        T *hr = h.data() + r * w, *cr = c.data() + r * w;
        (wide ? step_wide<T> : step<T>)(s.cell, z.get() + (row - begin) * 4 * w,
                                        recurrent.data() + r * columns, bias.data(), cr, hr, w);
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
    int64_t which = direction * s.h + head, previous = direction == 0 ? -1 : 1;
    std::vector<T> gh(size_t(rows * w), T(0)), gc(size_t(rows * w), T(0)), gz(size_t(rows * 4 * w), T(0)),
        zero(size_t(4 * w), T(0)), gates(size_t(4 * w)), bias = bias_of<T>(a, which);
    for (int64_t n = longest(s, first, rows) - 1; n >= 0; --n) {
      for (int64_t r = 0; r < rows; ++r) {
        if (n >= s.length(first + r)) continue;  // gz stays 0 until its last step
        int64_t row = s.row(first + r, direction, n), at = (which * s.rows() + row) * 4 * w,
                out = (row * s.h + head) * 2 * w + direction * w;
        T* gzr = gz.data() + r * 4 * w;
        gates_of(s.cell, a.z + at, zero.data(), bias.data(), gates.data(), w);
        step_back(s.cell, gates.data(), n == 0 ? zero.data() : a.cells + out + previous * s.h * 2 * w,
                  a.gy + out, gh.data() + r * w, gc.data() + r * w, gzr, w);
        std::copy(gzr, gzr + 4 * w, a.g_gates + at);
      }
      matrix_product({.dtype_ab = dtype_of<T>, .dtype_d = dtype_of<T>, .m = rows, .n = w, .k = 4 * w},
                     gz.data(), a.w_hh + which * 4 * w * w, gh.data());
    }
  });
}

template <class T>
void lstm_states_before_cpu(const LstmShape& s, const T* y, T* before) {
  for_each_task(s, [&](int64_t direction, int64_t head, int64_t first, int64_t rows) {
    for (int64_t i = first; i < first + rows; ++i)
      for (int64_t n = 0; n < s.length(i); ++n) {
        T* to = before + ((direction * s.h + head) * s.rows() + s.row(i, direction, n)) * s.w;
        if (n == 0) {
          std::fill(to, to + s.w, T(0));
          continue;
        }
        const T* from = y + (s.row(i, direction, n - 1) * s.h + head) * 2 * s.w + direction * s.w;
        std::copy(from, from + s.w, to);
      }
  });
}

template void lstm_fwd_cpu(const LstmForwardCpu<float>&);
template void lstm_fwd_cpu(const LstmForwardCpu<double>&);
template void lstm_bwd_cpu(const LstmBackward<float, float>&);
template void lstm_bwd_cpu(const LstmBackward<double, double>&);
template void lstm_states_before_cpu(const LstmShape&, const float*, float*);
template void lstm_states_before_cpu(const LstmShape&, const double*, double*);

}  // namespace occam::kernels
