// A thread walks along a stretch of tokens of one (image, direction) with two neighbouring channels and keeps
// the last taps of them in registers: x is read once, with a halo of taps - 1 at each stretch. Stretches are
// as long as leaves enough threads to fill the device.
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "ops/short_conv/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kThreads = 128;

template <class T>
struct alignas(2 * sizeof(T)) Two {
  T v[2];
};

/// Two channels from `at` on, zeros where they are not; one load where both are there and aligned.
template <class T>
__device__ __forceinline__ void load_two(const T* at, bool first, bool second, bool paired, float (&to)[2]) {
  to[0] = to[1] = 0;
  if (paired && first) {
    const Two<T> two = *reinterpret_cast<const Two<T>*>(at);
    to[0] = to_acc(two.v[0]), to[1] = to_acc(two.v[1]);
  } else {
    if (first) to[0] = to_acc(at[0]);
    if (second) to[1] = to_acc(at[1]);
  }
}
template <class T>
__device__ __forceinline__ void store_two(T* at, bool second, bool paired, const float (&from)[2]) {
  if (paired) {
    *reinterpret_cast<Two<T>*>(at) = {{from_acc<T>(from[0]), from_acc<T>(from[1])}};
  } else {
    at[0] = from_acc<T>(from[0]);
    if (second) at[1] = from_acc<T>(from[1]);
  }
}

/// Where a thread works: steps [first, last) of its direction, channels c and c + 1.
template <class T>
struct Stretch {
  int64_t image, direction, c, first, last;
  bool second, paired;

  __device__ Stretch(const ShortConvForward<T>& a, int64_t steps, bool packed) {
    const int64_t parts = div_up(a.s.t, steps), part = int64_t(blockIdx.x) % parts;
    c = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * 2;
    image = int64_t(blockIdx.x) / parts / 2, direction = int64_t(blockIdx.x) / parts % 2;
    first = part * steps, last = first + steps < a.s.t ? first + steps : a.s.t;
    second = c + 1 < a.s.c, paired = packed && second;
  }
  __device__ int64_t token(const ShortConvShape& s, int64_t step) const {
    return direction == 0 ? step : s.t - 1 - step;
  }
  __device__ void x(const ShortConvForward<T>& a, int64_t step, float (&to)[2]) const {
    const bool there = step >= 0 && step < a.s.t;
    const T* at =
        a.x + image * a.stride_b + (there ? token(a.s, step) : 0) * a.stride_t + direction * a.stride_r + c;
    load_two(at, there, there && second, paired, to);
  }
  /// Offset in packed [b,t,2,c].
  __device__ int64_t packed_at(const ShortConvShape& s, int64_t step) const {
    return ((image * s.t + token(s, step)) * 2 + direction) * s.c + c;
  }
};

/// Taps of channel c and c + 1 in the last a.s.taps of kTaps places, zeros before them.
template <int kTaps, class T>
__device__ __forceinline__ void load_taps(const ShortConvForward<T>& a, const Stretch<T>& s,
                                          float (&w)[kTaps][2], float (&bias)[2]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const bool there = j == 0 || s.second;
    const int64_t channel = s.direction * a.s.c + s.c + j;
    bias[j] = there ? to_acc(a.bias[channel]) : 0;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      const int64_t tap = i - (kTaps - a.s.taps);
      w[i][j] = there && tap >= 0 ? to_acc(a.w[channel * a.s.taps + tap]) : 0;
    }
  }
}

template <int kTaps>
__device__ __forceinline__ void shift(float (&window)[kTaps][2], const float (&next)[2]) {
#pragma unroll
  for (int i = 0; i + 1 < kTaps; ++i) window[i][0] = window[i + 1][0], window[i][1] = window[i + 1][1];
  window[kTaps - 1][0] = next[0], window[kTaps - 1][1] = next[1];
}

template <int kTaps, class T>
__global__ void __launch_bounds__(kThreads)
    short_conv_fwd_walk(ShortConvForward<T> a, int64_t steps, bool packed) {
  const Stretch<T> s(a, steps, packed);
  if (s.c >= a.s.c) return;
  float w[kTaps][2], bias[2], window[kTaps][2] = {}, next[2];
  load_taps(a, s, w, bias);
  for (int i = 1; i < kTaps; ++i) s.x(a, s.first - kTaps + i, next), shift(window, next);
#pragma unroll 4
  for (int64_t step = s.first; step < s.last; ++step) {
    s.x(a, step, next);
    shift(window, next);
    float y[2] = {bias[0], bias[1]};
#pragma unroll
    for (int i = 0; i < kTaps; ++i) y[0] += w[i][0] * window[i][0], y[1] += w[i][1] * window[i][1];
    y[0] = silu(y[0]), y[1] = silu(y[1]);
    store_two(a.y + s.packed_at(a.s, step), s.second, s.paired, y);
  }
}

/// g_t = gy_t silu'(sum before), gx_s = sum over i of w_i g_{s+(k-1)-i}: g of a stretch and of the k - 1
/// steps behind it are made here; what a stretch adds to the gradients of w and bias is of its own steps
/// only.
template <int kTaps, class T>
__global__ void __launch_bounds__(kThreads)
    short_conv_bwd_walk(ShortConvBackward<T> b, int64_t steps, bool packed) {
  const ShortConvForward<T>& a = b.forward;
  const Stretch<T> s(a, steps, packed);
  if (s.c >= a.s.c) return;
  float w[kTaps][2], bias[2], window[kTaps][2] = {}, g[kTaps][2] = {}, gw[kTaps][2] = {}, gbias[2] = {},
                              next[2];
  load_taps(a, s, w, bias);
  for (int i = 1; i < kTaps; ++i) s.x(a, s.first - kTaps + i, next), shift(window, next);
#pragma unroll 2
  for (int64_t step = s.first; step < s.last + kTaps - 1; ++step) {
    s.x(a, step, next);
    shift(window, next);
    const bool there = step < a.s.t;
    float slope[2];
    load_two(b.gy + (there ? s.packed_at(a.s, step) : 0), there, there && s.second, s.paired, slope);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float before = bias[j];
#pragma unroll
      for (int i = 0; i < kTaps; ++i) before += w[i][j] * window[i][j];
      slope[j] *= silu_grad(before);
      if (step < s.last) {
        gbias[j] += slope[j];
#pragma unroll
        for (int i = 0; i < kTaps; ++i) gw[i][j] += slope[j] * window[i][j];
      }
    }
    shift(g, slope);  // g[kTaps - 1] is of `step`
    const int64_t done = step - (kTaps - 1);
    if (done < s.first) continue;
    float gx[2] = {};
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      gx[0] += w[i][0] * g[kTaps - 1 - i][0], gx[1] += w[i][1] * g[kTaps - 1 - i][1];
    store_two(b.gx + s.packed_at(a.s, done), s.second, s.paired, gx);
  }
  if (b.partial == nullptr) return;
  const int64_t parts = div_up(a.s.t, steps), part = s.image * parts + int64_t(blockIdx.x) % parts;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (j == 1 && !s.second) break;
    float* to = b.partial + ((part * 2 + s.direction) * a.s.c + s.c + j) * (a.s.taps + 1);
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      if (const int64_t tap = i - (kTaps - a.s.taps); tap >= 0) to[tap] = gw[i][j];
    to[a.s.taps] = gbias[j];
  }
}

/// Tokens of a stretch: two waves of threads, but no fewer than 16 steps, of which the halo is a part.
int64_t steps_of(const ShortConvShape& s) {
  const int64_t threads = s.b * s.c,
                wanted = 2 * int64_t(device_limits().sm_count) * device_limits().threads_per_sm;
  const int64_t parts = div_up<int64_t>(wanted, threads > 0 ? threads : 1),
                steps = div_up<int64_t>(s.t, parts);
  return steps < 16 ? 16 : steps;
}
dim3 grid_of(const ShortConvShape& s) {
  return dim3(grid_of_blocks(s.b * 2 * div_up(s.t, steps_of(s))),
              unsigned(div_up<int64_t>(div_up<int64_t>(s.c, 2), kThreads)));
}
template <class T>
bool pairs(const ShortConvForward<T>& a) {
  const int64_t all = a.s.c | a.stride_b | a.stride_t | a.stride_r;
  return all % 2 == 0 && reinterpret_cast<uintptr_t>(a.x) % (2 * sizeof(T)) == 0;
}

}  // namespace

int64_t short_conv_parts(const ShortConvShape& s) { return s.b * div_up(s.t, steps_of(s)); }

template <class T>
void short_conv_fwd(const ShortConvForward<T>& a, void* stream) {
  auto* kernel = a.s.taps <= 4 ? short_conv_fwd_walk<4, T> : short_conv_fwd_walk<8, T>;
  kernel<<<grid_of(a.s), kThreads, 0, as_stream(stream)>>>(a, steps_of(a.s), pairs(a));
  check_launch("short_conv_fwd_walk", stream);
}

template <class T>
void short_conv_bwd(const ShortConvBackward<T>& a, void* stream) {
  const ShortConvShape& s = a.forward.s;
  const bool packed = pairs(a.forward) && reinterpret_cast<uintptr_t>(a.gy) % (2 * sizeof(T)) == 0;
  auto* kernel = s.taps <= 4 ? short_conv_bwd_walk<4, T> : short_conv_bwd_walk<8, T>;
  kernel<<<grid_of(s), kThreads, 0, as_stream(stream)>>>(a, steps_of(s), packed);
  check_launch("short_conv_bwd_walk", stream);
}

template void short_conv_fwd(const ShortConvForward<float>&, void*);
template void short_conv_fwd(const ShortConvForward<bf16>&, void*);
template void short_conv_bwd(const ShortConvBackward<float>&, void*);
template void short_conv_bwd(const ShortConvBackward<bf16>&, void*);

}  // namespace occam::kernels
