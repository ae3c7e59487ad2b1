#include "ops/lstm/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 256;
constexpr int kImages = 8;                      // that a block carries through time
constexpr int64_t kSharedWeights = 160 * 1024;  // w_hh stays in shared memory up to this size

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/// Steps of the longest of a block's images.
__device__ int64_t steps_of(const LstmShape& s, int64_t first, int64_t images) {
  if (s.offsets == nullptr) return s.t;
  int64_t steps = 0;
  for (int64_t i = first; i < first + images; ++i) steps = s.length(i) > steps ? s.length(i) : steps;
  return steps;
}

/// A block is a (direction, head) and kImages images; blocks do not wait for each other. Threads own gate
/// rows while they multiply, and (image, state) pairs in the cell. Shared memory: h and c [kImages, w],
/// gates [kImages, 4w], and w_hh transposed [w, 4w] when `resident`. The h of the next step is y as it is
/// stored, so that backward, which has only y, finds the same gates.
template <class T>
__global__ void __launch_bounds__(kThreads) lstm_fwd_steps(LstmForward<T, float> a, bool resident) {
  extern __shared__ float shared[];
  const int64_t w = a.s.w, rows = 4 * w, head = blockIdx.y % a.s.h, direction = blockIdx.y / a.s.h;
  const int64_t which = blockIdx.y, first = int64_t(blockIdx.x) * kImages;
  const bool gru = a.s.cell == Cell::gru;
  const int images = int(a.s.b - first < kImages ? a.s.b - first : kImages);
  float *h = shared, *c = h + kImages * w, *gates = c + kImages * w, *weights = gates + kImages * rows;
  const T* w_hh = a.w_hh + which * rows * w;
  if (resident)
    for (int64_t i = threadIdx.x; i < rows * w; i += kThreads)
      weights[i % w * rows + i / w] = to_acc(w_hh[i]);
  for (int64_t i = threadIdx.x; i < 2 * kImages * w; i += kThreads) h[i] = 0;
  __syncthreads();
  const int64_t steps = steps_of(a.s, first, images);
  for (int64_t n = 0; n < steps; ++n) {
    for (int64_t j = threadIdx.x; j < rows; j += kThreads) {
      float sum[kImages] = {};
      for (int64_t k = 0; k < w; ++k) {
        float weight = resident ? weights[k * rows + j] : to_acc(w_hh[j * w + k]);
#pragma unroll
        for (int r = 0; r < kImages; ++r) sum[r] += weight * h[r * w + k];
      }
      float bias = to_acc(a.b_ih[which * rows + j]) + to_acc(a.b_hh[which * rows + j]);
      const bool is_sigmoid = j < 2 * w || (!gru && j >= 3 * w);
#pragma unroll
      for (int r = 0; r < kImages; ++r)
        if (r < images && n < a.s.length(first + r)) {
          float z = a.z[(which * a.s.rows() + a.s.row(first + r, direction, n)) * rows + j] + sum[r] + bias;
          gates[r * rows + j] = is_sigmoid ? sigmoid(z) : gru ? z : tanhf(z);
        }
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < images * w; i += kThreads) {
      const int64_t r = i / w, k = i % w;
      if (n >= a.s.length(first + r)) continue;
      const int64_t out = (a.s.row(first + r, direction, n) * a.s.h + head) * 2 * w + direction * w + k;
      const float* g = gates + r * rows + k;
      float fresh = gru ? tanhf(g[2 * w] + g[0] * g[3 * w]) : g[0] * g[2 * w];
      c[i] = gru ? fresh + g[w] * (c[i] - fresh) : g[w] * c[i] + fresh;
      T y = from_acc<T>(gru ? c[i] : g[3 * w] * tanhf(c[i]));
      h[i] = to_acc(y);
      a.y[out] = y;
      if (a.cells != nullptr) a.cells[out] = from_acc<T>(c[i]);
    }
    __syncthreads();
  }
}

/// The way back. Threads own (image, state) pairs throughout. Shared memory: gh and gc [kImages, w],
/// gz [kImages, 4w], and w_hh [4w, w] when `resident`. The chain takes gz as it is stored.
template <class T>
__global__ void __launch_bounds__(kThreads) lstm_bwd_steps(LstmBackward<T, float> a, bool resident) {
  extern __shared__ float shared[];
  const int64_t w = a.s.w, rows = 4 * w, head = blockIdx.y % a.s.h, direction = blockIdx.y / a.s.h;
  const int64_t which = blockIdx.y, first = int64_t(blockIdx.x) * kImages;
  const bool gru = a.s.cell == Cell::gru;
  const int64_t images = a.s.b - first < kImages ? a.s.b - first : kImages;
  float *gh = shared, *gc = gh + kImages * w, *gz = gc + kImages * w, *weights = gz + kImages * rows;
  const T* w_hh = a.w_hh + which * rows * w;
  if (resident)
    for (int64_t i = threadIdx.x; i < rows * w; i += kThreads) weights[i] = to_acc(w_hh[i]);
  for (int64_t i = threadIdx.x; i < kImages * (2 * w + rows); i += kThreads) gh[i] = 0;
  __syncthreads();
  const int64_t previous = direction == 0 ? -1 : 1;
  for (int64_t n = steps_of(a.s, first, images) - 1; n >= 0; --n) {
    for (int64_t i = threadIdx.x; i < images * w; i += kThreads) {
      const int64_t r = i / w, k = i % w;
      if (n >= a.s.length(first + r)) continue;  // gz stays 0 until its last step
      const int64_t row = a.s.row(first + r, direction, n), at = (which * a.s.rows() + row) * rows + k;
      const int64_t out = (row * a.s.h + head) * 2 * w + direction * w + k;
      float z[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int64_t bias = which * rows + q * w + k;
        z[q] = a.z[at + q * w] + (to_acc(a.b_ih[bias]) + to_acc(a.b_hh[bias]));
      }
      float before = n == 0 ? 0.0f : to_acc(a.cells[out + previous * a.s.h * 2 * w]);
      float dh = gh[i] + to_acc(a.gy[out]), d[4];
      if (gru) {
        float reset = sigmoid(z[0]), stay = sigmoid(z[1]), fresh = tanhf(z[2] + reset * z[3]);
        dh += gc[i];
        d[2] = dh * (1 - stay) * (1 - fresh * fresh);
        d[3] = d[2] * reset;
        d[0] = d[2] * z[3] * reset * (1 - reset);
        d[1] = dh * (before - fresh) * stay * (1 - stay);
        gc[i] = dh * stay;
      } else {
        float in = sigmoid(z[0]), forget = sigmoid(z[1]), cell = tanhf(z[2]), leave = sigmoid(z[3]);
        float tc = tanhf(forget * before + in * cell), dc = gc[i] + dh * leave * (1 - tc * tc);
        d[0] = dc * cell * in * (1 - in);
        d[1] = dc * before * forget * (1 - forget);
        d[2] = dc * in * (1 - cell * cell);
        d[3] = dh * tc * leave * (1 - leave);
        gc[i] = dc * forget;
      }
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        T stored = from_acc<T>(d[q]);
        a.g_gates[at + q * w] = stored;
        gz[r * rows + q * w + k] = to_acc(stored);
      }
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < images * w; i += kThreads) {
      const float* d = gz + i / w * rows;
      const int64_t k = i % w;
      float sum = 0;
      for (int64_t j = 0; j < rows; ++j)
        sum += d[j] * (resident ? weights[j * w + k] : to_acc(w_hh[j * w + k]));
      gh[i] = sum;
    }
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) lstm_before(LstmShape s, const T* y, T* before) {
  const int64_t w = s.w;
  OCCAM_GRID_LOOP(at, 2 * s.h * s.b * s.t * w) {
    const int64_t k = at % w, n = at / w % s.t, i = at / w / s.t % s.b, which = at / w / s.t / s.b;
    const int64_t head = which % s.h, direction = which / s.h;
    if (n >= s.length(i)) continue;
    T* to = before + (which * s.rows() + s.row(i, direction, n)) * w + k;
    *to = n == 0 ? T{} : y[(s.row(i, direction, n - 1) * s.h + head) * 2 * w + direction * w + k];
  }
}

dim3 grid_of(const LstmShape& s) { return dim3(unsigned(div_up<int64_t>(s.b, kImages)), unsigned(2 * s.h)); }

template <class Args>
void launch(void (*kernel)(Args, bool), const char* name, const Args& args, void* stream) {
  const int64_t w = args.s.w, weights = 16 * w * w, state = 4 * kImages * 6 * w;
  const bool resident = weights <= kSharedWeights && weights + state <= device_limits().shared_bytes_opt_in;
  const int64_t bytes = state + (resident ? weights : 0);
  allow_shared(kernel, name, bytes);
  kernel<<<grid_of(args.s), kThreads, size_t(bytes), as_stream(stream)>>>(args, resident);
  check_launch(name, stream);
}

}  // namespace

template <class T>
void lstm_fwd(const LstmForward<T, float>& a, void* stream) {
  launch(lstm_fwd_steps<T>, "lstm_fwd_steps", a, stream);
}

template <class T>
void lstm_bwd(const LstmBackward<T, float>& a, void* stream) {
  launch(lstm_bwd_steps<T>, "lstm_bwd_steps", a, stream);
}

template <class T>
void lstm_states_before(const LstmShape& s, const T* y, T* before, void* stream) {
  lstm_before<<<grid_for(2 * s.h * s.b * s.t * s.w, kThreads), kThreads, 0, as_stream(stream)>>>(s, y,
                                                                                                 before);
  check_launch("lstm_before", stream);
}

template void lstm_fwd(const LstmForward<float, float>&, void*);
template void lstm_fwd(const LstmForward<bf16, float>&, void*);
template void lstm_bwd(const LstmBackward<float, float>&, void*);
template void lstm_bwd(const LstmBackward<bf16, float>&, void*);
template void lstm_states_before(const LstmShape&, const float*, float*, void*);
template void lstm_states_before(const LstmShape&, const bf16*, bf16*, void*);

}  // namespace occam::kernels
