#include <algorithm>
#include <cmath>
#include <vector>

#include "core/tensor.h"
#include "core/vmath.h"
#include "ops/blas.h"
#include "ops/matrix_scan/kernel.h"
#include "ops/matrix_scan/op.h"

namespace occam::kernels {

namespace {

constexpr int64_t kChunk = kMatrixScanChunk;

/// d[m,n] = op(a) op(b) + beta d, all packed.
template <class T>
void product(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const std::vector<T>& a,
             const std::vector<T>& b, double beta, std::vector<T>& d) {
  matrix_product({.dtype_ab = dtype_of<T>,
                  .dtype_d = dtype_of<T>,
                  .trans_a = trans_a,
                  .trans_b = trans_b,
                  .m = m,
                  .n = n,
                  .k = k,
                  .beta = beta},
                 a.data(), b.data(), d.data());
}

/// lower [count,count]: exp of the sum of log_decay over j < m <= i, 0 above the diagonal and, when
/// `exclusive`, on it. in: the same from before the first token up to i; out: from j to the last. Sums are
/// built up token by token; no large sum is subtracted from another.
template <class T>
OCCAM_VECTORIZED void decays(const T* log_decay, int64_t count, bool exclusive, T* lower, T* in, T* out) {
  T sums[kChunk], from_start = 0;
  for (int64_t i = 0; i < count; ++i) {
    T step = log_decay[i], *row = lower + i * count;
    from_start += step;
    in[i] = from_start;
    for (int64_t j = 0; j < i; ++j) sums[j] += step;
    sums[i] = 0;
    for (int64_t j = 0; j <= i; ++j) row[j] = exp_of(sums[j]);
    for (int64_t j = i + 1; j < count; ++j) row[j] = 0;
    if (exclusive) row[i] = 0;
  }
  for (int64_t i = 0; i < count; ++i) in[i] = exp_of(in[i]), out[i] = exp_of(sums[i]);
}

/// out = a b, element by element.
template <class T>
OCCAM_VECTORIZED void multiply(const T* a, const T* b, T* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] * b[i];
}
template <class T>
OCCAM_VECTORIZED T dot(const T* a, const T* b, int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

/// A chunk of one (image, direction, head) in the order of the scan. v has w columns: p, and a column of ones
/// behind them where a denominator is wanted.
template <class T>
struct Chunk {
  MatrixScanShape s;
  int64_t w = 0, image = 0, direction = 0, head = 0, begin = 0, length = 0, first = 0, count = 0;
  std::vector<T> q, k, v, lower, in, out, scale, log_decay, scores, weights, scaled;

  Chunk(const MatrixScanShape& shape, int64_t columns)
      : s(shape),
        w(columns),
        q(size_t(kChunk * s.n)),
        k(q.size()),
        v(size_t(kChunk * w)),
        lower(size_t(kChunk * kChunk)),
        in(size_t(kChunk)),
        out(in),
        scale(in),
        log_decay(in),
        scores(lower),
        weights(lower),
        scaled(q) {}

  int64_t group() const { return head / (s.h / s.g); }
  void start(int64_t of_image) { image = of_image, begin = s.begin(image), length = s.length(image); }
  int64_t token(int64_t i) const { return direction == 0 ? first + i : length - 1 - first - i; }
  int64_t row(int64_t i) const { return begin + token(i); }
  /// Of a [b,t,2,h] tensor.
  int64_t gate(int64_t i) const { return (row(i) * 2 + direction) * s.h + head; }
  /// Of a [b,t,e,h] tensor.
  int64_t outcome(int64_t i) const { return s.merge ? row(i) * s.h + head : gate(i); }
  /// Of a [b,t,h,e,p] tensor.
  int64_t result(int64_t i) const {
    return s.merge ? (row(i) * s.h + head) * s.p : ((row(i) * s.h + head) * 2 + direction) * s.p;
  }

  template <class Args>
  void load(const Args& a, int64_t from_token) {
    first = from_token, count = std::min(kChunk, length - from_token);
    auto values = [&](const ScanView<T>& x, int64_t i, int64_t which) {
      return x.of(s, image) + token(i) * x.t + direction * x.r + which * x.h;
    };
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(values(a.q, i, group()), s.n, q.data() + i * s.n);
      std::copy_n(values(a.k, i, group()), s.n, k.data() + i * s.n);
      std::copy_n(values(a.v, i, head), s.p, v.data() + i * w);
      if (w > s.p) v[size_t(i * w + s.p)] = 1;
      log_decay[size_t(i)] = a.log_decay[gate(i)];
      scale[size_t(i)] = a.scale != nullptr ? a.scale[gate(i)] : T(1);
    }
    decays(log_decay.data(), count, a.diagonal != nullptr || (s.merge && direction == 1), lower.data(),
           in.data(), out.data());
    product(false, true, count, count, s.n, q, k, 0, scores);
    for (int64_t i = 0; i < count; ++i) {
      T* row_of = weights.data() + i * count;
      multiply(lower.data() + i * count, scale.data(), row_of, count);
      multiply(row_of, scores.data() + i * count, row_of, count);
    }
  }
  T total() const { return in[size_t(count - 1)]; }
  /// state = total state + sum of out u k v^T.
  void advance(std::vector<T>& state) {
    for (T& x : state) x *= total();
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < s.n; ++j)
        scaled[size_t(i * s.n + j)] = k[size_t(i * s.n + j)] * out[size_t(i)] * scale[size_t(i)];
    product(true, false, s.n, w, count, scaled, v, 1, state);
  }
};

}  // namespace

template <class T>
void matrix_scan_fwd_cpu(const MatrixScanForward<T, T>& a) {
  const MatrixScanShape s = a.s;
  const int64_t w = s.p + (a.floor != nullptr ? 1 : 0), tasks = s.b * s.h * s.outputs();
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < tasks; ++task) {
    Chunk<T> c(s, w);
    c.start(task / s.outputs() / s.h), c.head = task / s.outputs() % s.h;
    std::vector<T> total(size_t(c.length * w), T(0)), num(size_t(kChunk * w)), state(size_t(s.n * w));
    for (int64_t r = 0; r < 2; ++r) {
      if (!s.merge && r != task % 2) continue;
      c.direction = r;
      std::fill(state.begin(), state.end(), T(0));
      for (int64_t first = 0; first < c.length; first += kChunk) {
        c.load(a, first);
        product(false, false, c.count, w, c.count, c.weights, c.v, 0, num);
        if (first > 0) {
          for (int64_t i = 0; i < c.count; ++i)
            for (int64_t j = 0; j < s.n; ++j)
              c.scaled[size_t(i * s.n + j)] = c.q[size_t(i * s.n + j)] * c.in[size_t(i)];
          product(false, false, c.count, w, s.n, c.scaled, state, 1, num);
        }
        for (int64_t i = 0; i < c.count; ++i) {
          T* sum = total.data() + c.token(i) * w;
          for (int64_t j = 0; j < w; ++j) sum[j] += num[size_t(i * w + j)];
          if (a.skip != nullptr)
            for (int64_t j = 0; j < s.p; ++j) sum[j] += a.skip[r * s.h + c.head] * c.v[size_t(i * w + j)];
          if (a.diagonal != nullptr && r == 0)
            for (int64_t j = 0; j < s.p; ++j) sum[j] += a.diagonal[c.outcome(i)] * c.v[size_t(i * w + j)];
        }
        if (first + kChunk < c.length) c.advance(state);
      }
    }
    c.first = 0;
    for (int64_t i = 0; i < c.length; ++i) {
      const T* row = total.data() + c.token(i) * w;
      T divisor = 1;
      if (a.floor != nullptr) {
        a.den[c.outcome(i)] = row[s.p];
        divisor = std::max(std::abs(row[s.p]), a.floor[c.outcome(i)]);
      }
      for (int64_t j = 0; j < s.p; ++j) a.y[c.result(i) + j] = row[j] / divisor;
    }
  }
}

template <class T>
void matrix_scan_bwd_cpu(const MatrixScanBackward<T, T>& a) {
  const MatrixScanShape s = a.s;
  const int64_t w = s.p + (a.floor != nullptr ? 1 : 0);
  for (T* g : {a.gq, a.gk})
    if (g != nullptr) std::fill_n(g, s.rows() * 2 * s.g * s.n, T(0));
      // Heads of a group add to the same gq and gk, so one task has them all.
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < s.b * 2 * s.g; ++task) {
    Chunk<T> c(s, w);
    c.start(task / s.g / 2), c.direction = task / s.g % 2;
    const int64_t chunks = (c.length + kChunk - 1) / kChunk;
    const size_t state_size = size_t(s.n * w);
    std::vector<T> states(size_t(chunks) * state_size), state(state_size), gstate(state_size),
        gnum(size_t(kChunk * w)), gscores(size_t(kChunk * kChunk)), grows(size_t(kChunk * w)), gq(c.q),
        gk(c.q), other(c.q), g_in(c.in), g_out(c.in);
    for (int64_t in_group = 0; in_group < s.h / s.g; ++in_group) {
      c.head = task % s.g * (s.h / s.g) + in_group;
      std::fill(state.begin(), state.end(), T(0));
      for (int64_t i = 0; i < chunks; ++i) {
        std::copy(state.begin(), state.end(), states.begin() + i * int64_t(state_size));
        if (i + 1 < chunks) c.load(a, i * kChunk), c.advance(state);
      }
      std::fill(gstate.begin(), gstate.end(), T(0));
      T gskip = 0;
      for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
        c.load(a, chunk * kChunk);
        const int64_t n = c.count;
        std::copy_n(states.begin() + chunk * int64_t(state_size), state_size, state.begin());
        // Gradients of num and, in the last column, of den.
        for (int64_t i = 0; i < n; ++i) {
          const T *gy = a.gy + c.result(i), *y = a.y + c.result(i);
          T* g = gnum.data() + i * w;
          if (a.floor == nullptr) {
            std::copy_n(gy, s.p, g);
            if (a.skip != nullptr) gskip += dot(gy, c.v.data() + i * w, s.p);
            continue;
          }
          T den = a.den[c.outcome(i)], floor = a.floor[c.outcome(i)], size = std::abs(den);
          T divisor = std::max(size, floor), g_divisor = -dot(gy, y, s.p) / divisor;
          for (int64_t j = 0; j < s.p; ++j) g[j] = gy[j] / divisor;
          g[s.p] = size > floor ? (den > 0 ? g_divisor : -g_divisor) : T(0);
          if (a.gfloor != nullptr && (!s.merge || c.direction == 0))
            a.gfloor[c.outcome(i)] = size > floor ? T(0) : g_divisor;
        }
        product(false, true, n, n, w, gnum, c.v, 0, gscores);  // of the weights
        // gv = weights^T gnum + u out k gstate
        product(true, false, n, w, n, c.weights, gnum, 0, grows);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < s.n; ++j)
            other[size_t(i * s.n + j)] = c.k[size_t(i * s.n + j)] * c.out[size_t(i)] * c.scale[size_t(i)];
        product(false, false, n, w, s.n, other, gstate, 1, grows);
        for (int64_t i = 0; i < n && a.gv != nullptr; ++i) {
          T* gv = a.gv + c.gate(i) * s.p;
          std::copy_n(grows.data() + i * w, s.p, gv);
          if (a.skip != nullptr)
            for (int64_t j = 0; j < s.p; ++j)
              gv[j] += a.skip[c.direction * s.h + c.head] * gnum[size_t(i * w + j)];
          if (a.diagonal != nullptr && c.direction == 0)
            for (int64_t j = 0; j < s.p; ++j) gv[j] += a.diagonal[c.outcome(i)] * gnum[size_t(i * w + j)];
        }
        if (a.gdiagonal != nullptr && c.direction == 0)
          for (int64_t i = 0; i < n; ++i) a.gdiagonal[c.outcome(i)] = gscores[size_t(i * n + i)];
        // What decays and scales get: within the chunk, and by what enters (g_in) and leaves it (g_out).
        std::vector<T> glog(size_t(n), T(0)), gscale(size_t(n), T(0));
        for (int64_t i = 0; i < n; ++i) {
          T below = 0;
          for (int64_t j = 0; j <= i; ++j) {
            const size_t at = size_t(i * n + j);
            T g = gscores[at] * c.lower[at];
            gscale[size_t(j)] += g * c.scores[at];
            gscores[at] = g * c.scale[size_t(j)];  // of q k^T
            if (j < i) below += gscores[at] * c.scores[at], glog[size_t(j + 1)] += below;
          }
          for (int64_t j = i + 1; j < n; ++j) gscores[size_t(i * n + j)] = 0;
        }
        // gk = gscores^T q + u out (v gstate^T);  gq = gscores k + in (gnum state^T)
        product(false, true, n, s.n, w, c.v, gstate, 0, gk);
        product(false, true, n, s.n, w, gnum, state, 0, gq);
        for (int64_t i = 0; i < n; ++i) {
          T *k_row = gk.data() + i * s.n, *q_row = gq.data() + i * s.n, u = c.scale[size_t(i)];
          T left = c.out[size_t(i)] * dot(k_row, c.k.data() + i * s.n, s.n);
          gscale[size_t(i)] += left;
          g_out[size_t(i)] = left * u;
          g_in[size_t(i)] = c.in[size_t(i)] * dot(q_row, c.q.data() + i * s.n, s.n);
          for (int64_t j = 0; j < s.n; ++j) k_row[j] *= c.out[size_t(i)] * u, q_row[j] *= c.in[size_t(i)];
        }
        product(true, false, n, s.n, n, gscores, c.q, 1, gk);
        product(false, false, n, s.n, n, gscores, c.k, 1, gq);
        T before = 0, after = 0, through = c.total() * dot(state.data(), gstate.data(), s.n * w);
        for (int64_t i = 0; i < n; ++i) glog[size_t(i)] += before + through, before += g_out[size_t(i)];
        for (int64_t i = n - 1; i >= 0; --i) after += g_in[size_t(i)], glog[size_t(i)] += after;
        for (int64_t i = 0; i < n; ++i) {
          if (a.glog_decay != nullptr) a.glog_decay[c.gate(i)] = glog[size_t(i)];
          if (a.gscale != nullptr) a.gscale[c.gate(i)] = gscale[size_t(i)];
          const int64_t to = ((c.row(i) * 2 + c.direction) * s.g + c.group()) * s.n;
          if (a.gq != nullptr)
            for (int64_t j = 0; j < s.n; ++j) a.gq[to + j] += gq[size_t(i * s.n + j)];
          if (a.gk != nullptr)
            for (int64_t j = 0; j < s.n; ++j) a.gk[to + j] += gk[size_t(i * s.n + j)];
        }
        if (chunk > 0) {  // gstate = total gstate + sum of in q gnum^T
          for (T& x : gstate) x *= c.total();
          for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < s.n; ++j)
              c.scaled[size_t(i * s.n + j)] = c.q[size_t(i * s.n + j)] * c.in[size_t(i)];
          product(true, false, s.n, w, n, c.scaled, gnum, 1, gstate);
        }
      }
      if (a.gskip != nullptr) a.gskip[(c.image * 2 + c.direction) * s.h + c.head] = gskip;
    }
  }
}

template void matrix_scan_fwd_cpu(const MatrixScanForward<float, float>&);
template void matrix_scan_fwd_cpu(const MatrixScanForward<double, double>&);
template void matrix_scan_bwd_cpu(const MatrixScanBackward<float, float>&);
template void matrix_scan_bwd_cpu(const MatrixScanBackward<double, double>&);

}  // namespace occam::kernels
