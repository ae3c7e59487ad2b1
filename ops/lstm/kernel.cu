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

/// A block is a (direction, head) and kImages images; blocks do not wait for each other. Threads own gate
/// rows while they multiply, and (image, state) pairs in the cell. Shared memory: h [kImages, w],
/// z [kImages, 4w], and w_hh transposed [w, 4w] when `resident`.
template <class T>
__global__ void __launch_bounds__(kThreads) lstm_fwd_steps(LstmForward<T, float> a, bool resident) {
  extern __shared__ float shared[];
  const int64_t w = a.s.w, gates = 4 * w, head = blockIdx.y % a.s.h, direction = blockIdx.y / a.s.h;
  const int64_t which = blockIdx.y, first = int64_t(blockIdx.x) * kImages;
  const int images = int(a.s.b - first < kImages ? a.s.b - first : kImages);
  float *h = shared, *z = h + kImages * w, *weights = z + kImages * gates;
  const T* w_hh = a.w_hh + which * gates * w;
  if (resident)
    for (int64_t i = threadIdx.x; i < gates * w; i += kThreads)
      weights[i % w * gates + i / w] = to_acc(w_hh[i]);
  for (int64_t i = threadIdx.x; i < kImages * w; i += kThreads) h[i] = 0;
  __syncthreads();
  for (int64_t n = 0; n < a.s.t; ++n) {
    const int64_t token = direction == 0 ? n : a.s.t - 1 - n,
                  previous = direction == 0 ? token - 1 : token + 1;
    for (int64_t j = threadIdx.x; j < gates; j += kThreads) {
      float sum[kImages] = {};
      for (int64_t k = 0; k < w; ++k) {
        float weight = resident ? weights[k * gates + j] : to_acc(w_hh[j * w + k]);
#pragma unroll
        for (int r = 0; r < kImages; ++r) sum[r] += weight * h[r * w + k];
      }
      float bias = to_acc(a.b_ih[which * gates + j]) + to_acc(a.b_hh[which * gates + j]);
      bool is_tanh = j >= 2 * w && j < 3 * w;
#pragma unroll
      for (int r = 0; r < kImages; ++r)
        if (r < images) {
          float* gate = a.gates + ((which * a.s.b + first + r) * a.s.t + token) * gates + j;
          float x = *gate + sum[r] + bias;
          x = is_tanh ? tanhf(x) : sigmoid(x);
          *gate = x;
          z[r * gates + j] = x;
        }
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < images * w; i += kThreads) {
      const int64_t r = i / w, k = i % w, row = (which * a.s.b + first + r) * a.s.t;
      const float* g = z + r * gates + k;
      float before = n == 0 ? 0.0f : a.cells[(row + previous) * w + k];
      float c = g[w] * before + g[0] * g[2 * w];
      a.cells[(row + token) * w + k] = c;
      if (a.before != nullptr) a.before[(row + token) * w + k] = from_acc<T>(h[i]);
      h[i] = g[3 * w] * tanhf(c);
      a.y[(((first + r) * a.s.t + token) * a.s.h + head) * 2 * w + direction * w + k] = from_acc<T>(h[i]);
    }
    __syncthreads();
  }
}

/// The way back. Threads own (image, state) pairs throughout. Shared memory: gh and gc [kImages, w],
/// gz [kImages, 4w], and w_hh [4w, w] when `resident`.
template <class T>
__global__ void __launch_bounds__(kThreads) lstm_bwd_steps(LstmBackward<T, float> a, bool resident) {
  extern __shared__ float shared[];
  const int64_t w = a.s.w, gates = 4 * w, head = blockIdx.y % a.s.h, direction = blockIdx.y / a.s.h;
  const int64_t which = blockIdx.y, first = int64_t(blockIdx.x) * kImages;
  const int64_t images = a.s.b - first < kImages ? a.s.b - first : kImages;
  float *gh = shared, *gc = gh + kImages * w, *gz = gc + kImages * w, *weights = gz + kImages * gates;
  const T* w_hh = a.w_hh + which * gates * w;
  if (resident)
    for (int64_t i = threadIdx.x; i < gates * w; i += kThreads) weights[i] = to_acc(w_hh[i]);
  for (int64_t i = threadIdx.x; i < 2 * kImages * w; i += kThreads) gh[i] = 0;
  __syncthreads();
  for (int64_t n = a.s.t - 1; n >= 0; --n) {
    const int64_t token = direction == 0 ? n : a.s.t - 1 - n,
                  previous = direction == 0 ? token - 1 : token + 1;
    for (int64_t i = threadIdx.x; i < images * w; i += kThreads) {
      const int64_t r = i / w, k = i % w, row = (which * a.s.b + first + r) * a.s.t;
      const float* g = a.gates + (row + token) * gates + k;
      float in = g[0], forget = g[w], cell = g[2 * w], out = g[3 * w];
      float tc = tanhf(a.cells[(row + token) * w + k]);
      float before = n == 0 ? 0.0f : a.cells[(row + previous) * w + k];
      float dh =
          gh[i] + to_acc(a.gy[(((first + r) * a.s.t + token) * a.s.h + head) * 2 * w + direction * w + k]);
      float dc = gc[i] + dh * out * (1 - tc * tc);
      float d[4] = {dc * cell * in * (1 - in), dc * before * forget * (1 - forget),
                    dc * in * (1 - cell * cell), dh * tc * out * (1 - out)};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        gz[r * gates + q * w + k] = d[q];
        a.g_gates[(row + token) * gates + q * w + k] = from_acc<T>(d[q]);
      }
      gc[i] = dc * forget;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < images * w; i += kThreads) {
      const float* d = gz + i / w * gates;
      const int64_t k = i % w;
      float sum = 0;
      for (int64_t j = 0; j < gates; ++j)
        sum += d[j] * (resident ? weights[j * w + k] : to_acc(w_hh[j * w + k]));
      gh[i] = sum;
    }
    __syncthreads();
  }
}

dim3 grid_of(const LstmShape& s) { return dim3(unsigned(div_up<int64_t>(s.b, kImages)), unsigned(2 * s.h)); }

template <class Args>
void launch(void (*kernel)(Args, bool), const char* name, const Args& args, int64_t state_rows,
            void* stream) {
  const int64_t w = args.s.w, weights = 16 * w * w, state = 4 * kImages * w * state_rows;
  const bool resident = weights <= kSharedWeights && weights + state <= device_limits().shared_bytes_opt_in;
  const int64_t bytes = state + (resident ? weights : 0);
  allow_shared(kernel, name, bytes);
  kernel<<<grid_of(args.s), kThreads, size_t(bytes), as_stream(stream)>>>(args, resident);
  check_launch(name, stream);
}

}  // namespace

template <class T>
void lstm_fwd(const LstmForward<T, float>& a, void* stream) {
  launch(lstm_fwd_steps<T>, "lstm_fwd_steps", a, 5, stream);
}

template <class T>
void lstm_bwd(const LstmBackward<T, float>& a, void* stream) {
  launch(lstm_bwd_steps<T>, "lstm_bwd_steps", a, 6, stream);
}

template void lstm_fwd(const LstmForward<float, float>&, void*);
template void lstm_fwd(const LstmForward<bf16, float>&, void*);
template void lstm_bwd(const LstmBackward<float, float>&, void*);
template void lstm_bwd(const LstmBackward<bf16, float>&, void*);

}  // namespace occam::kernels
