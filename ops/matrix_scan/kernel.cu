#include <type_traits>

#include "ops/matrix_scan/block.cuh"
#include "ops/matrix_scan/window.h"

namespace occam::kernels {

namespace {

/// num [b,2,h,t,w] of one (image, direction, head).
template <class T>
__global__ void __launch_bounds__(kScanThreads)
    matrix_scan_fwd_chunks(MatrixScanForward<T, float> a, float* num, int w, int chunk) {
  extern __shared__ float shared[];
  ScanBlock<T> c(a.s, w, chunk, shared);
  const int n = int(a.s.n);
  c.clear(c.state, n * c.wide());
  float* out = num + blockIdx.x * a.s.t * w;
  for (int64_t first = 0; first < c.length; first += chunk) {
    c.load(a, first);
    for (int i = int(threadIdx.x); i < c.count * c.count; i += kScanThreads)
      c.scores[i / c.count * c.square() + i % c.count] = c.weight(i / c.count, i % c.count);
    for (int i = int(threadIdx.x); i < c.count * n; i += kScanThreads)
      c.q[i / n * c.row() + i % n] *= c.in[i / n];
    __syncthreads();
    // Rows in the order of the scan: backwards in memory for direction 1.
    float* rows = out + c.place(0) * w;
    const int ld = c.direction == 0 ? w : -w;
    block_product<false, false>(c.count, w, c.count, c.scores, c.square(), c.v, c.wide(), rows, ld, 0);
    block_product<false, false>(c.count, w, n, c.q, c.row(), c.state, c.wide(), rows, ld, 1);
    if (first + chunk < c.length) c.advance();
  }
}

/// y = num / max(|den|, floor) + skip v, a warp for each (image, token, head, output).
template <class T>
__global__ void matrix_scan_fwd_finish(MatrixScanForward<T, float> a, const float* num, int w) {
  const MatrixScanShape s = a.s;
  const int64_t e = s.outputs(), rows = s.b * s.t * s.h * e, warps = int64_t(gridDim.x) * (blockDim.x / 32);
  for (int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
    const int64_t out = row % e, head = row / e % s.h, token = row / e / s.h % s.t,
                  image = row / e / s.h / s.t;
    if (token >= s.length(image)) continue;
    const float* from = num + (((image * 2 + out) * s.h + head) * s.t + token) * w;
    const int64_t place = s.begin(image) + token, to = ((place * s.h + head) * e + out) * s.p;
    const int64_t other = s.merge ? s.h * s.t * w : 0;
    float divisor = 1;
    if (a.floor != nullptr) {
      const int64_t at = (place * e + out) * s.h + head;
      float den = from[s.p];
      if (s.merge) den += from[s.p + other];
      if (threadIdx.x % 32 == 0) a.den[at] = den;
      divisor = max_(fabsf(den), a.floor[at]);
    }
    for (int64_t j = threadIdx.x % 32; j < s.p; j += 32) {
      float y = from[j];
      if (s.merge) y += from[j + other];
      y /= divisor;
      if (a.skip != nullptr)
        for (int64_t r = out; r < (s.merge ? 2 : out + 1); ++r)
          y +=
              a.skip[r * s.h + head] * to_acc(a.v.of(s, image)[token * a.v.t + r * a.v.r + head * a.v.h + j]);
      if (a.diagonal != nullptr)
        y += a.diagonal[place * s.h + head] * to_acc(a.v.of(s, image)[token * a.v.t + head * a.v.h + j]);
      a.y[to + j] = from_acc<T>(y);
    }
  }
}

/// gnum [b,e,h,t,w]: gradients of num and, behind them, of den. A warp for each (image, token, head, output).
template <class T>
__global__ void matrix_scan_bwd_start(MatrixScanBackward<T, float> a, float* gnum, int w) {
  const MatrixScanShape s = a.s;
  const int64_t e = s.outputs(), rows = s.b * s.t * s.h * e, warps = int64_t(gridDim.x) * (blockDim.x / 32);
  for (int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
    const int64_t out = row % e, head = row / e % s.h, token = row / e / s.h % s.t,
                  image = row / e / s.h / s.t;
    if (token >= s.length(image)) continue;
    float* to = gnum + (((image * e + out) * s.h + head) * s.t + token) * w;
    const int64_t place = s.begin(image) + token, y = ((place * s.h + head) * e + out) * s.p;
    float factor = 1;
    if (a.floor != nullptr) {
      float product = 0;
      for (int64_t j = threadIdx.x % 32; j < s.p; j += 32)
        product += to_acc(a.gy[y + j]) * to_acc(a.y[y + j]);
      for (int mask = 16; mask > 0; mask /= 2) product += __shfl_xor_sync(0xffffffffu, product, mask);
      const int64_t at = (place * e + out) * s.h + head;
      const float den = a.den[at], floor = a.floor[at], g = -product / max_(fabsf(den), floor);
      factor = 1 / max_(fabsf(den), floor);
      const bool by_floor = !(fabsf(den) > floor);
      if (threadIdx.x % 32 == 0) {
        to[s.p] = by_floor ? 0 : den > 0 ? g : -g;
        if (a.gfloor != nullptr) a.gfloor[at] = by_floor ? g : 0;
      }
    }
    for (int64_t j = threadIdx.x % 32; j < s.p; j += 32) to[j] = to_acc(a.gy[y + j]) * factor;
  }
}

struct BackwardScratch {
  float *gnum, *states, *gq, *gk;  // [b,e,h,t,w], [b,2,h,chunks,n,w|1], [b,t,2,h,n] twice
};

/// One (image, direction, head): states forward, then gradients backward. See README.md.
template <class T>
__global__ void __launch_bounds__(kScanThreads)
    matrix_scan_bwd_chunks(MatrixScanBackward<T, float> a, BackwardScratch scratch, int w, int chunk) {
  extern __shared__ float shared[];
  ScanBlock<T> c(a.s, w, chunk, shared);
  const MatrixScanShape s = a.s;
  const int n = int(s.n), p = int(s.p), wide = c.wide(), row = c.row(), square = c.square();
  const int chunks = int(div_up<int64_t>(c.length, chunk)), state_floats = n * wide;
  float* gnum = shared + ScanBlock<T>::floats(s, w, chunk);
  float *gstate = gnum + chunk * wide, *gscores = gstate + state_floats, *rows = gscores + chunk * square;
  float *g_in = rows + chunk * row, *g_out = g_in + chunk, *gscale = g_out + chunk, *warps = gscale + chunk;
  float* states = scratch.states + int64_t(blockIdx.x) * div_up<int64_t>(s.t, chunk) * state_floats;
  c.clear(c.state, state_floats);
  c.clear(gstate, state_floats);
  __syncthreads();
  for (int i = 0; i < chunks; ++i) {
    for (int j = int(threadIdx.x); j < state_floats; j += kScanThreads)
      states[i * state_floats + j] = c.state[j];
    if (i + 1 < chunks) c.load(a, int64_t(i) * chunk), c.advance();
  }
  float gskip = 0;
  for (int i = chunks - 1; i >= 0; --i) {
    c.load(a, int64_t(i) * chunk);
    const int count = c.count;
    for (int j = int(threadIdx.x); j < state_floats; j += kScanThreads)
      c.state[j] = states[i * state_floats + j];
    const int64_t e = s.outputs(), out = s.merge ? 0 : c.direction;
    const float* from = scratch.gnum + ((c.image * e + out) * s.h + c.head) * s.t * w;
    for (int j = int(threadIdx.x); j < count * w; j += kScanThreads)
      gnum[j / w * wide + j % w] = from[c.place(j / w) * w + j % w];
    __syncthreads();
    block_product<false, true>(count, count, w, gnum, wide, c.v, wide, gscores, square, 0);
    const float* diagonal = c.direction == 0 ? a.diagonal : nullptr;
    // gk in its part from the next state, u out v gstate^T, and what decays and scales get of it.
    block_product<false, true>(count, n, w, c.v, wide, gstate, wide, rows, row, 0);
    float through = 0;
    for (int j = int(threadIdx.x); j < state_floats; j += kScanThreads)
      if (j % wide < w) through += c.state[j] * gstate[j];
    if (a.skip != nullptr)
      for (int j = int(threadIdx.x); j < count * p; j += kScanThreads)
        gskip += gnum[j / p * wide + j % p] * c.v[j / p * wide + j % p];
    through = c.total() * scan_block_sum(through, warps);  // synchronises
    for (int j = int(threadIdx.x); j < count; j += kScanThreads) {
      float left = 0, sum = 0;
      for (int l = 0; l < n; ++l) left += rows[j * row + l] * c.k[j * row + l];
      for (int l = j; l < count; ++l)
        sum += gscores[l * square + j] * c.lower[l * square + j] * c.scores[l * square + j];
      if (diagonal != nullptr && a.gdiagonal != nullptr)
        a.gdiagonal[(s.begin(c.image) + c.place(j)) * s.h + c.head] = gscores[j * square + j];
      left *= c.out[j];
      gscale[j] = sum + left, g_out[j] = left * c.scale[j];
    }
    __syncthreads();
    for (int j = int(threadIdx.x); j < count * n; j += kScanThreads)
      rows[j / n * row + j % n] *= c.out[j / n] * c.scale[j / n];
    // gscores becomes that of q k^T; scores become weights.
    for (int j = int(threadIdx.x); j < count * count; j += kScanThreads) {
      const int at = j / count * square + j % count;
      gscores[at] *= c.lower[at] * c.scale[j % count];
    }
    __syncthreads();
    block_product<true, false>(count, n, count, gscores, square, c.q, row, rows, row, 1);
    __syncthreads();
    const int64_t line = (c.image * s.t * 2 + c.direction) * s.h + c.head, next = 2 * s.h;
    for (int j = int(threadIdx.x); j < count * n; j += kScanThreads)
      scratch.gk[(line + c.place(j / n) * next) * n + j % n] = rows[j / n * row + j % n];
    __syncthreads();
    // gq in its part from the state before, in gnum state^T.
    block_product<false, true>(count, n, w, gnum, wide, c.state, wide, rows, row, 0);
    __syncthreads();
    for (int j = int(threadIdx.x); j < count; j += kScanThreads) {
      float sum = 0;
      for (int l = 0; l < n; ++l) sum += rows[j * row + l] * c.q[j * row + l];
      g_in[j] = sum * c.in[j];
    }
    __syncthreads();
    for (int j = int(threadIdx.x); j < count * n; j += kScanThreads) rows[j / n * row + j % n] *= c.in[j / n];
    __syncthreads();
    block_product<false, false>(count, n, count, gscores, square, c.k, row, rows, row, 1);
    __syncthreads();
    for (int j = int(threadIdx.x); j < count * n; j += kScanThreads)
      scratch.gq[(line + c.place(j / n) * next) * n + j % n] = rows[j / n * row + j % n];
    // A token's decay meets every pair that it lies between, what enters before it and what leaves behind it.
    for (int m = int(threadIdx.x); m < count; m += kScanThreads) {
      float sum = through;
      for (int j = 0; j < m; ++j) sum += g_out[j];
      for (int l = m; l < count; ++l) {
        sum += g_in[l];
        for (int j = 0; j < m; ++j) sum += gscores[l * square + j] * c.scores[l * square + j];
      }
      if (a.glog_decay != nullptr) a.glog_decay[c.gate(m)] = sum;
      if (a.gscale != nullptr) a.gscale[c.gate(m)] = gscale[m];
    }
    __syncthreads();
    // gv = weights^T gnum + u out k gstate + skip gnum, in `rows` a few columns at a time.
    for (int j = int(threadIdx.x); j < count * count; j += kScanThreads) {
      const int at = j / count * square + j % count;
      c.scores[at] = c.weight(j / count, j % count);
    }
    for (int j = int(threadIdx.x); j < count * n; j += kScanThreads) {
      c.k[j / n * row + j % n] *= c.out[j / n] * c.scale[j / n];
      c.q[j / n * row + j % n] *= c.in[j / n];
    }
    __syncthreads();
    block_product<true, false>(count, p, count, c.scores, square, gnum, wide, c.v, wide, 0);
    __syncthreads();
    block_product<false, false>(count, p, n, c.k, row, gstate, wide, c.v, wide, 1);
    __syncthreads();
    for (int j = int(threadIdx.x); j < count * p; j += kScanThreads) {
      float g = c.v[j / p * wide + j % p];
      if (a.skip != nullptr) g += a.skip[c.direction * s.h + c.head] * gnum[j / p * wide + j % p];
      if (diagonal != nullptr)
        g += diagonal[(s.begin(c.image) + c.place(j / p)) * s.h + c.head] * gnum[j / p * wide + j % p];
      if (a.gv != nullptr) a.gv[c.gate(j / p) * p + j % p] = from_acc<T>(g);
    }
    __syncthreads();
    block_product<true, false>(n, w, count, c.q, row, gnum, wide, gstate, wide, c.total());
  }
  gskip = scan_block_sum(gskip, warps);
  if (a.gskip != nullptr && threadIdx.x == 0) a.gskip[blockIdx.x] = gskip;
}

/// gq (or gk) of a group is the sum over its heads.
template <class T>
__global__ void matrix_scan_bwd_groups(MatrixScanShape s, const float* from, T* to) {
  const int64_t heads = s.h / s.g, width = 2 * s.g * s.n;
  OCCAM_GRID_LOOP(i, s.b * s.t * width) {
    const int64_t image = i / width / s.t, token = i / width % s.t;
    if (token >= s.length(image)) continue;
    const float* part = from + i / s.n * heads * s.n + i % s.n;
    float sum = 0;
    for (int64_t head = 0; head < heads; ++head) sum += part[head * s.n];
    to[(s.begin(image) + token) * width + i % width] = from_acc<T>(sum);
  }
}

int columns(const MatrixScanShape& s, bool normed) { return int(s.p) + (normed ? 1 : 0); }
int64_t backward_floats(const MatrixScanShape& s, int w, int chunk) {
  return ScanBlock<float>::floats(s, w, chunk) + (chunk + s.n) * (w | 1) + chunk * (chunk + 1) +
         chunk * (s.n + 1) + 3 * chunk + kScanThreads / 32;
}
/// Tokens of a chunk: the most for which the way back fits into shared memory.
int chunk_of(const MatrixScanShape& s, int w) {
  int chunk = 32;
  while (chunk > 1 && 4 * backward_floats(s, w, chunk) > device_limits().shared_bytes_opt_in) chunk /= 2;
  return chunk;
}

}  // namespace

bool matrix_scan_fits(const MatrixScanShape& s, bool normed) {
  return 4 * backward_floats(s, columns(s, normed), 1) <= device_limits().shared_bytes_opt_in;
}

template <class T>
int64_t matrix_scan_fwd_scratch(const MatrixScanForward<T, float>& a) {
  if constexpr (std::is_same_v<T, bf16>)
    if (fits_windows(a)) return window_fwd_scratch(a);
  return a.s.b * 2 * a.s.h * a.s.t * columns(a.s, a.floor != nullptr);
}

template <class T>
MatrixScanSums matrix_scan_bwd_sums(const MatrixScanBackward<T, float>& a) {
  if constexpr (std::is_same_v<T, bf16>)
    if (fits_window_bwd(a)) return {reads_both(a), reads_both(a) || (a.s.merge && a.v.r == 0)};
  return {};
}

template <class T>
int64_t matrix_scan_bwd_skips(const MatrixScanBackward<T, float>& a) {
  if constexpr (std::is_same_v<T, bf16>)
    if (fits_window_bwd(a)) return window_bwd_skips(a);
  return a.s.b;
}

template <class T>
int64_t matrix_scan_bwd_scratch(const MatrixScanBackward<T, float>& a) {
  if constexpr (std::is_same_v<T, bf16>)
    if (fits_window_bwd(a)) return window_bwd_scratch(a);
  const MatrixScanShape& s = a.s;
  const int w = columns(s, a.floor != nullptr);
  const int64_t lines = s.b * 2 * s.h, chunks = div_up<int64_t>(s.t, chunk_of(s, w));
  return lines * (s.t * w + chunks * s.n * (w | 1) + 2 * s.t * s.n);
}

template <class T>
void matrix_scan_fwd(const MatrixScanForward<T, float>& a, float* scratch, void* stream) {
  if constexpr (std::is_same_v<T, bf16>)
    if (fits_windows(a)) return window_fwd(a, scratch, stream);
  const int w = columns(a.s, a.floor != nullptr), chunk = chunk_of(a.s, w);
  const int64_t bytes = 4 * ScanBlock<T>::floats(a.s, w, chunk), lines = a.s.b * 2 * a.s.h;
  allow_shared(matrix_scan_fwd_chunks<T>, "matrix_scan_fwd_chunks", bytes);
  matrix_scan_fwd_chunks<T>
      <<<grid_of_blocks(lines), kScanThreads, size_t(bytes), as_stream(stream)>>>(a, scratch, w, chunk);
  check_launch("matrix_scan_fwd_chunks", stream);
  const int64_t rows = a.s.b * a.s.t * a.s.h * a.s.outputs();
  matrix_scan_fwd_finish<T><<<grid_for(rows * 32, 256), 256, 0, as_stream(stream)>>>(a, scratch, w);
  check_launch("matrix_scan_fwd_finish", stream);
}

template <class T>
void matrix_scan_bwd(const MatrixScanBackward<T, float>& a, float* scratch, void* stream) {
  if constexpr (std::is_same_v<T, bf16>)
    if (fits_window_bwd(a)) return window_bwd(a, scratch, stream);
  const MatrixScanShape s = a.s;
  const int w = columns(s, a.floor != nullptr), chunk = chunk_of(s, w);
  const int64_t lines = s.b * 2 * s.h, states = lines * div_up<int64_t>(s.t, chunk) * s.n * (w | 1);
  BackwardScratch parts;
  parts.gnum = scratch, parts.states = parts.gnum + lines * s.t * w;
  parts.gq = parts.states + states, parts.gk = parts.gq + lines * s.t * s.n;
  const int64_t rows = s.b * s.t * s.h * s.outputs();
  matrix_scan_bwd_start<T><<<grid_for(rows * 32, 256), 256, 0, as_stream(stream)>>>(a, parts.gnum, w);
  check_launch("matrix_scan_bwd_start", stream);
  const int64_t bytes = 4 * backward_floats(s, w, chunk);
  allow_shared(matrix_scan_bwd_chunks<T>, "matrix_scan_bwd_chunks", bytes);
  matrix_scan_bwd_chunks<T>
      <<<grid_of_blocks(lines), kScanThreads, size_t(bytes), as_stream(stream)>>>(a, parts, w, chunk);
  check_launch("matrix_scan_bwd_chunks", stream);
  for (bool keys : {false, true}) {
    T* to = keys ? a.gk : a.gq;
    if (to == nullptr) continue;
    matrix_scan_bwd_groups<T><<<grid_for(s.b * s.t * 2 * s.g * s.n, 256), 256, 0, as_stream(stream)>>>(
        s, keys ? parts.gk : parts.gq, to);
    check_launch("matrix_scan_bwd_groups", stream);
  }
}

#define OCCAM_INSTANTIATE(T)                                                         \
  template MatrixScanSums matrix_scan_bwd_sums(const MatrixScanBackward<T, float>&); \
  template int64_t matrix_scan_fwd_scratch(const MatrixScanForward<T, float>&);      \
  template int64_t matrix_scan_bwd_scratch(const MatrixScanBackward<T, float>&);     \
  template int64_t matrix_scan_bwd_skips(const MatrixScanBackward<T, float>&);       \
  template void matrix_scan_fwd(const MatrixScanForward<T, float>&, float*, void*);  \
  template void matrix_scan_bwd(const MatrixScanBackward<T, float>&, float*, void*)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(bf16);
#undef OCCAM_INSTANTIATE

}  // namespace occam::kernels
