#pragma once
// The chunked scan of one (image, direction, head) by one block, in f32 and shared memory, of any sizes: what
// every launch of kernel.cu is made of.
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "ops/matrix_scan/kernel.h"

namespace occam::kernels {

using namespace cuda;

constexpr int kScanThreads = 256;

/// d[m,n] = op(a) op(b) + beta d by the whole block; leading dimensions in elements, 4 x 4 elements a thread.
/// The caller synchronises.
template <bool kTransA, bool kTransB>
__device__ void block_product(int m, int n, int k, const float* a, int lda, const float* b, int ldb, float* d,
                              int ldd, float beta) {
  const int across = (n + 3) / 4, tiles = (m + 3) / 4 * across;
  for (int tile = int(threadIdx.x); tile < tiles; tile += kScanThreads) {
    // Neighbouring threads have neighbouring columns; a thread's own are `across` apart.
    const int row = tile / across * 4, column = tile % across;
    float sum[4][4] = {};
    for (int l = 0; l < k; ++l) {
      float x[4], y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = min(row + i, m - 1), c = min(column + i * across, n - 1);
        x[i] = kTransA ? a[l * lda + r] : a[r * lda + l];
        y[i] = kTransB ? b[c * ldb + l] : b[l * ldb + c];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += x[i] * y[j];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (row + i < m && column + j * across < n) {
          float* out = d + (row + i) * ldd + column + j * across;
          *out = beta == 0 ? sum[i][j] : sum[i][j] + beta * *out;
        }
  }
}

/// Sum over the block of a value of each thread; scratch has a float for each warp. Everyone gets it.
__device__ inline float scan_block_sum(float value, float* scratch) {
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < kScanThreads / 32; ++i) sum += scratch[i];
  return sum;
}

/// A chunk in the order of the scan, and the state. v has w columns: p, and ones behind them where a
/// denominator is wanted.
template <class T>
struct ScanBlock {
  MatrixScanShape s;
  int w, size;  // columns of v; most tokens of a chunk
  int64_t image, direction, head, length, first = 0;
  int count = 0;
  float *q, *k, *v, *state, *scores, *lower, *in, *out, *scale, *log_decay;

  __device__ int row() const { return int(s.n) + 1; }  // leading dimensions: odd, against bank conflicts
  __device__ int wide() const { return w | 1; }
  __device__ int square() const { return size + 1; }
  static OCCAM_HD int64_t floats(const MatrixScanShape& s, int w, int size) {
    return 2 * size * (s.n + 1) + (size + s.n) * (w | 1) + 2 * size * (size + 1) + 4 * size;
  }
  __device__ ScanBlock(const MatrixScanShape& shape, int columns, int chunk, float* shared)
      : s(shape), w(columns), size(chunk) {
    image = blockIdx.x / s.h / 2, direction = blockIdx.x / s.h % 2, head = blockIdx.x % s.h;
    length = s.length(image);
    q = shared, k = q + size * row(), v = k + size * row(), state = v + size * wide();
    scores = state + s.n * wide(), lower = scores + size * square(), in = lower + size * square();
    out = in + size, scale = out + size, log_decay = scale + size;
  }
  /// Of token i of the chunk in its sequence.
  __device__ int64_t place(int i) const { return direction == 0 ? first + i : length - 1 - first - i; }
  __device__ int64_t gate(int i) const { return ((s.begin(image) + place(i)) * 2 + direction) * s.h + head; }

  __device__ void clear(float* x, int64_t floats_of) const {
    for (int64_t i = threadIdx.x; i < floats_of; i += kScanThreads) x[i] = 0;
  }
  __device__ void rows(const ScanView<T>& x, int64_t which, int columns, float* to, int ld) const {
    const T* from = x.of(s, image) + direction * x.r + which * x.h;
    for (int i = int(threadIdx.x); i < count * columns; i += kScanThreads)
      to[i / columns * ld + i % columns] = to_acc(from[place(i / columns) * x.t + i % columns]);
  }
  /// Loads a chunk; scores = q k^T, lower = decays. Ends synchronised, and waits before it overwrites.
  template <class Args>
  __device__ void load(const Args& a, int64_t start) {
    first = start, count = int(length - start < size ? length - start : size);
    __syncthreads();
    const int64_t group = head / (s.h / s.g);
    rows(a.q, group, int(s.n), q, row());
    rows(a.k, group, int(s.n), k, row());
    rows(a.v, head, int(s.p), v, wide());
    for (int i = int(threadIdx.x); i < count; i += kScanThreads) {
      if (w > s.p) v[i * wide() + s.p] = 1;
      log_decay[i] = a.log_decay[gate(i)];
      scale[i] = a.scale != nullptr ? a.scale[gate(i)] : 1.0f;
    }
    __syncthreads();
    const bool exclusive = a.diagonal != nullptr || (s.merge && direction == 1);
    for (int j = int(threadIdx.x); j < count; j += kScanThreads) {
      float sum = 0, from_start = 0;
      for (int i = 0; i < j; ++i) lower[i * square() + j] = 0, from_start += log_decay[i];
      lower[j * square() + j] = exclusive ? 0.0f : 1.0f;
      in[j] = expf(from_start + log_decay[j]);
      for (int i = j + 1; i < count; ++i) lower[i * square() + j] = expf(sum += log_decay[i]);
      out[j] = expf(sum);
    }
    block_product<false, true>(count, count, int(s.n), q, row(), k, row(), scores, square(), 0);
    __syncthreads();
  }
  __device__ float total() const { return in[count - 1]; }
  __device__ float weight(int i, int j) const {
    return scores[i * square() + j] * lower[i * square() + j] * scale[j];
  }
  /// state = total state + sum of out u k v^T; k is overwritten.
  __device__ void advance() {
    for (int i = int(threadIdx.x); i < count * int(s.n); i += kScanThreads)
      k[i / int(s.n) * row() + i % int(s.n)] *= out[i / int(s.n)] * scale[i / int(s.n)];
    __syncthreads();
    block_product<true, false>(int(s.n), w, count, k, row(), v, wide(), state, wide(), total());
    __syncthreads();
  }
};

}  // namespace occam::kernels
