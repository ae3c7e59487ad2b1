#include "ops/distance/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/reduce.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void mse_fwd_row(const T* x, const T* y, float* row, int64_t rows, int64_t c) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < c; i += blockDim.x) {
      float d = to_acc(x[r * c + i]) - to_acc(y[r * c + i]);
      sum += d * d;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) row[r] = sum;
  }
}

template <class T>
__global__ void mse_bwd_kernel(const T* x, const T* y, const float* gy, float scale, T* gx, T* gy2,
                               int64_t count) {
  OCCAM_GRID_LOOP(i, count) {
    float g = *gy * scale * (to_acc(x[i]) - to_acc(y[i]));
    if (gx) gx[i] = from_acc<T>(g);
    if (gy2) gy2[i] = from_acc<T>(-g);
  }
}

template <class T>
__global__ void cosine_fwd_row(const T* x, const T* y, float* row, float* stats, int64_t rows, int64_t c) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    float xy = 0, xx = 0, yy = 0;
    for (int64_t i = threadIdx.x; i < c; i += blockDim.x) {
      float a = to_acc(x[r * c + i]), b = to_acc(y[r * c + i]);
      xy += a * b, xx += a * a, yy += b * b;
    }
    xy = block_sum(xy);
    Pair<float> squares = block_sum2(xx, yy);
    if (threadIdx.x == 0) {
      stats[3 * r] = xy, stats[3 * r + 1] = squares.first, stats[3 * r + 2] = squares.second;
      row[r] = 1 - xy / fmaxf(sqrtf(squares.first) * sqrtf(squares.second), 1e-8f);
    }
  }
}

template <class T>
__global__ void cosine_bwd_kernel(const T* x, const T* y, const float* stats, const float* gy, float scale,
                                  T* gx, T* gy2, int64_t rows, int64_t c) {
  OCCAM_GRID_LOOP(i, rows * c) {
    const float* s = stats + 3 * (i / c);
    float norm = sqrtf(s[1]) * sqrtf(s[2]), a = to_acc(x[i]), b = to_acc(y[i]), g = -*gy * scale;
    bool floor = norm < 1e-8f;
    float inverse = floor ? 1e8f : 1 / norm, cosine = s[0] * inverse;
    if (gx) gx[i] = from_acc<T>(g * (b * inverse - (floor ? 0.0f : a * cosine / s[1])));
    if (gy2) gy2[i] = from_acc<T>(g * (a * inverse - (floor ? 0.0f : b * cosine / s[2])));
  }
}

}  // namespace

template <class T>
void mse_fwd(const T* x, const T* y, float* row, int64_t rows, int64_t c, void* stream) {
  if (rows == 0) return;
  mse_fwd_row<<<grid_of_rows(rows), kThreads, 0, as_stream(stream)>>>(x, y, row, rows, c);
  check_launch("mse_fwd_row", stream);
}
template <class T>
void mse_bwd(const T* x, const T* y, const float* gy, float scale, T* gx, T* gy2, int64_t count,
             void* stream) {
  if (count == 0) return;
  mse_bwd_kernel<<<grid_for(count, kThreads), kThreads, 0, as_stream(stream)>>>(x, y, gy, scale, gx, gy2,
                                                                                count);
  check_launch("mse_bwd", stream);
}
template <class T>
void cosine_fwd(const T* x, const T* y, float* row, float* stats, int64_t rows, int64_t c, void* stream) {
  if (rows == 0) return;
  cosine_fwd_row<<<grid_of_rows(rows), kThreads, 0, as_stream(stream)>>>(x, y, row, stats, rows, c);
  check_launch("cosine_fwd_row", stream);
}
template <class T>
void cosine_bwd(const T* x, const T* y, const float* stats, const float* gy, float scale, T* gx, T* gy2,
                int64_t rows, int64_t c, void* stream) {
  if (rows * c == 0) return;
  cosine_bwd_kernel<<<grid_for(rows * c, kThreads), kThreads, 0, as_stream(stream)>>>(x, y, stats, gy, scale,
                                                                                      gx, gy2, rows, c);
  check_launch("cosine_bwd", stream);
}

#define OCCAM_INSTANTIATE(T)                                                                                \
  template void mse_fwd(const T*, const T*, float*, int64_t, int64_t, void*);                               \
  template void mse_bwd(const T*, const T*, const float*, float, T*, T*, int64_t, void*);                   \
  template void cosine_fwd(const T*, const T*, float*, float*, int64_t, int64_t, void*);                    \
  template void cosine_bwd(const T*, const T*, const float*, const float*, float, T*, T*, int64_t, int64_t, \
                           void*)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(bf16);

}  // namespace occam::kernels
