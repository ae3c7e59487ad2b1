#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "core/tensor.h"
#include "core/vmath.h"
#include "ops/blas.h"
#include "ops/lstm/kernel.h"
#include "ops/wide_product.h"

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

/// e^-x; of |x| above 43, where 1 + it is 1 or large, as of 43.
inline float exp_of_minus(float x) {
  x = x < -43.0f ? -43.0f : x;
  x = x > 43.0f ? 43.0f : x;
  return vexp_near(-x);
}
inline double gate_of(double x) { return sigmoid_of(x); }
inline float gate_of(float x) { return 1.0f / (1.0f + exp_of_minus(x)); }
/// sigmoid(x) tanh(y); of floats by one quotient for both, which errs by 2e-7 at most, also where y is small.
inline double gated(double x, double y) { return sigmoid_of(x) * tanh_of(y); }
inline float gated(float x, float y) {
  const float p = exp_of_minus(x), q = exp_of_minus(2.0f * std::fabs(y));
  return std::copysign((1.0f - q) / ((1.0f + p) * (1.0f + q)), y);
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

// The forward pass, 16 units at a time: the products of their gates with the state before, then their cells,
// beside which the next products begin. For one image these are products of a matrix and a vector, 64 x 256
// at the usual width: too small for a library call, and the matrix, 64 KB, comes from the L2 cache. What the
// L1 cache still holds of it is what was read last, so every other step goes through the matrix backwards.

constexpr int64_t kUnits = 16, kColumns = 4 * kUnits;  // a block of the matrix: all gates of so many units
constexpr int kSums = 8;  // vectors of sums at once for one image: as many as hide the latency of an addition

/// What a task carries through time.
template <class T>
struct Chain {
  const LstmForwardCpu<T>& a;
  int64_t direction, head, first, rows;
  const T *z, *matrix;  // w_ih x + biases of the task's rows; w_hh in blocks [w,4,kUnits]
  T *h[2], *c, *sums;   // [rows,w]; the state before step n is h[n % 2]; [rows,kColumns]
};

/// w_hh [4w,w] in blocks, units beyond the last 0.
template <class T>
void in_blocks(const T* w_hh, int64_t w, T* to) {
  const bool wide = wide_vectors();
  for (int64_t gate = 0; gate < 4; ++gate)
    for (int64_t unit = 0; unit < w; unit += kUnits) {
      const int64_t units = std::min(kUnits, w - unit);
      const T* from = w_hh + (gate * w + unit) * w;
      T* out = to + unit / kUnits * w * kColumns + gate * kUnits;
      if constexpr (std::is_same_v<T, float>)
        if (wide) {
          wide_pack_vector(true, from, w, w, units, out, kColumns);
          continue;
        }
      for (int64_t j = 0; j < kUnits; ++j)
        for (int64_t k = 0; k < w; ++k) out[k * kColumns + j] = j < units ? from[j * w + k] : T(0);
    }
}

/// out[kImages, kPacks * kPack] = h[kImages, w] times so many columns of a block; all sums in registers, of
/// kParts parts of the terms apart.
template <int kImages, int kPacks, int kParts, int kPack, class T>
[[gnu::always_inline]] inline void times_columns(const T* h, const T* block, T* out, int64_t w, bool back) {
  typedef T V __attribute__((vector_size(kPack * sizeof(T)), aligned(sizeof(T)), may_alias));
  V sum[kParts][kImages][kPacks] = {};
  const int64_t next = back ? -1 : 1;
  if (back) h += w - 1, block += (w - 1) * kColumns;
  auto add = [&](int part) __attribute__((always_inline)) {
    const V* row = reinterpret_cast<const V*>(block);
#pragma GCC unroll 8
    for (int r = 0; r < kImages; ++r)
#pragma GCC unroll 8
      for (int q = 0; q < kPacks; ++q) sum[part][r][q] += h[r * w] * row[q];
    h += next, block += next * kColumns;
  };
  int64_t n = w;
  for (; n >= kParts; n -= kParts)
#pragma GCC unroll 8
    for (int part = 0; part < kParts; ++part) add(part);
  for (; n > 0; --n) add(0);
#pragma GCC unroll 8
  for (int r = 0; r < kImages; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < kPacks; ++q) {
#pragma GCC unroll 8
      for (int part = 1; part < kParts; ++part) sum[0][r][q] += sum[part][r][q];
      reinterpret_cast<V*>(out + r * kColumns)[q] = sum[0][r][q];
    }
}

/// out [images,kColumns] = h [images,w] times a block, by vectors of kPack.
template <int kPack, class T>
[[gnu::always_inline]] inline void times_block(const T* h, const T* block, T* out, int64_t images, int64_t w,
                                               bool back) {
  constexpr int kPacks = std::min(kSums, int(kColumns) / kPack), kOfFour = kPack * sizeof(T) == 64 ? 4 : 2;
  int64_t r = 0;
  for (; r + 4 <= images; r += 4)
    for (int64_t j = 0; j < kColumns; j += kOfFour * kPack)
      times_columns<4, kOfFour, 1, kPack>(h + r * w, block + j, out + r * kColumns + j, w, back);
  for (; r < images; ++r)
    for (int64_t j = 0; j < kColumns; j += kPacks * kPack)
      times_columns<1, kPacks, kSums / kPacks, kPack>(h + r * w, block + j, out + r * kColumns + j, w, back);
}

/// Cells of up to kUnits units: c of the step before in, of this one out (of a GRU: h in f32). Gates are
/// z [4,w] + sums [4,kUnits]. All of a unit in one go, so that their chains of operations overlap.
template <class T>
[[gnu::always_inline]] inline void cells_of(Cell cell, const T* __restrict z, const T* __restrict sums,
                                            T* __restrict c, T* __restrict h, T* __restrict y, int64_t w,
                                            int64_t units) {
  auto gate = [&](int64_t g, int64_t j) __attribute__((always_inline)) {
    return z[g * w + j] + sums[g * kUnits + j];
  };
  if (cell == Cell::gru) {
    for (int64_t j = 0; j < units; ++j) {
      T r = gate_of(gate(0, j)), u = gate_of(gate(1, j)), n = tanh_of(gate(2, j) + r * gate(3, j));
      h[j] = y[j] = c[j] = n + u * (c[j] - n);
    }
    return;
  }
  for (int64_t j = 0; j < units; ++j) {
    c[j] = gate_of(gate(1, j)) * c[j] + gated(gate(0, j), gate(2, j));
    h[j] = y[j] = gated(gate(3, j), c[j]);
  }
}

/// Step n of all images.
template <int kPack, class T>
[[gnu::always_inline]] inline void one_step(const Chain<T>& t, int64_t n) {
  const LstmShape& s = t.a.s;
  const int64_t w = s.w, blocks = (w + kUnits - 1) / kUnits, begin = s.begin(t.first);
  const bool back = n % 2 == 1;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t block = back ? blocks - 1 - i : i, unit = block * kUnits,
                  units = std::min(kUnits, w - unit);
    times_block<kPack>(t.h[n % 2], t.matrix + block * w * kColumns, t.sums, t.rows, w, back);
    for (int64_t r = 0; r < t.rows; ++r) {
      if (n >= s.length(t.first + r)) continue;
      const int64_t row = s.row(t.first + r, t.direction, n), at = r * w + unit,
                    out = (row * s.h + t.head) * 2 * w + t.direction * w + unit;
      const T *z = t.z + (row - begin) * 4 * w + unit, *sums = t.sums + r * kColumns;
      T *c = t.c + at, *h = t.h[(n + 1) % 2] + at;
      if (units == kUnits)
        cells_of(s.cell, z, sums, c, h, t.a.y + out, w, kUnits);
      else
        cells_of(s.cell, z, sums, c, h, t.a.y + out, w, units);
      if (t.a.cells != nullptr) std::copy(c, c + units, t.a.cells + out);
    }
  }
}
template <class T>
OCCAM_VECTORIZED void step(const Chain<T>& t, int64_t n) {
  one_step<32 / sizeof(T)>(t, n);
}
template <class T>
OCCAM_WIDE void step_wide(const Chain<T>& t, int64_t n) {
  one_step<64 / sizeof(T)>(t, n);
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
  const int64_t w = s.w, matrix_size = (w + kUnits - 1) / kUnits * kUnits * 4 * w;
  const auto step_of = wide_vectors() ? step_wide<T> : step<T>;
  for_each_task(s, [&](int64_t direction, int64_t head, int64_t first, int64_t rows) {
    int64_t which = direction * s.h + head;
    const std::vector<T> bias = bias_of<T>(a, which);
    // z of the task's rows, which follow one another: of one image it stays in the L2 cache until it is read.
    const int64_t begin = s.begin(first), count = s.begin(first + rows) - begin;
    const std::unique_ptr<T[]> z(new T[size_t(count * 4 * w)]);
    matrix_product({.dtype_ab = dtype_of<T>,
                    .dtype_d = dtype_of<T>,
                    .trans_b = true,
                    .m = count,
                    .n = 4 * w,
                    .k = a.width,
                    .lda = s.h * a.width,
                    .bias = bias.data()},
                   a.x + (begin * s.h + head) * a.width, a.w_ih + which * 4 * w * a.width, z.get());
    const Tensor matrix = empty({matrix_size}, {dtype_of<T>, kCPU});
    in_blocks(a.w_hh + which * 4 * w * w, w, matrix.data<T>());
    std::vector<T> state(size_t(3 * rows * w), T(0)), sums(size_t(rows * kColumns));
    const Chain<T> chain{a,
                         direction,
                         head,
                         first,
                         rows,
                         z.get(),
                         matrix.data<T>(),
                         {state.data(), state.data() + rows * w},
                         state.data() + 2 * rows * w,
                         sums.data()};
    for (int64_t n = 0; n < longest(s, first, rows); ++n) step_of(chain, n);
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
