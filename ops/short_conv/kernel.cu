// A thread has some neighbouring channels of a direction and walks along a range of the steps of all images,
// one image after another; the last taps of x stay in registers. So x is read once, but for taps - 1 steps
// where a range begins inside an image, and parameters and their gradients are in registers for the whole
// range. Rows are loaded several at a time, since stores between loads would let a thread wait for each.
#include "core/cuda/launch.h"
#include "core/cuda/vec.cuh"
#include "ops/short_conv/kernel.h"

namespace occam::kernels {

using namespace cuda;

namespace {

constexpr int kMostThreads = 256, kBlocksForward = 3, kBlocksBackward = 2;  // on a multiprocessor, at least
constexpr int kLeastSteps = 16;  // of a range, of which the taps - 1 steps before it are a part

/// window: x of the last kTaps steps, the newest last; weights in the last of kTaps places, zeros before.
template <int kTaps, int kWide, class T>
struct Channels {
  float w[kTaps][kWide], bias[kWide], window[kTaps][kWide];

  __device__ Channels(const ShortConvForward<T>& a, int64_t channel) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
      bias[j] = to_acc(a.bias[channel + j]);
#pragma unroll
      for (int i = 0; i < kTaps; ++i) {
        const int64_t tap = i - (kTaps - a.s.taps);
        w[i][j] = tap >= 0 ? to_acc(a.w[(channel + j) * a.s.taps + tap]) : 0;
      }
    }
  }
  __device__ __forceinline__ void push(const Pack<T, kWide>& x) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
#pragma unroll
      for (int i = 0; i + 1 < kTaps; ++i) window[i][j] = window[i + 1][j];
      window[kTaps - 1][j] = to_acc(x.v[j]);
    }
  }
  __device__ __forceinline__ float sum(int j) const {
    float sum = bias[j];
#pragma unroll
    for (int i = 0; i < kTaps; ++i) sum += w[i][j] * window[i][j];
    return sum;
  }
};

/// Steps [first, last) of one image of `length` in a thread's range; steps of direction 1 go backwards.
template <class T>
struct Piece {
  int64_t first, last, length;
  int64_t x, packed, x_step, packed_step;  // offsets of step `first` in x and in packed tensors

  __device__ Piece(const ShortConvForward<T>& a, int64_t at, int64_t end, int64_t direction, int64_t c) {
    const int64_t image = a.s.sequence_of(at), begin = a.s.begin(image);
    length = a.s.length(image);
    first = at - begin, last = min(length, first + end - at);
    const int64_t token = direction == 0 ? first : length - 1 - first;
    x = a.x_at(image) + token * a.stride_t + direction * a.stride_r + c;
    packed = ((begin + token) * a.s.directions + direction) * a.s.c + c;
    x_step = direction == 0 ? a.stride_t : -a.stride_t;
    packed_step = (direction == 0 ? a.s.directions : -a.s.directions) * a.s.c;
  }
};

/// Calls piece(Piece) for every piece of this thread's range, the window filled with what comes before the
/// step `ahead` of the first.
template <int kTaps, int kWide, class T, class Fn>
__device__ __forceinline__ void walk(const ShortConvForward<T>& a, int64_t steps,
                                     Channels<kTaps, kWide, T>& channels, int64_t direction, int64_t c,
                                     int64_t ahead, Fn fn) {
  const int64_t end = min(a.s.used(), (int64_t(blockIdx.x) + 1) * steps);
  for (int64_t at = int64_t(blockIdx.x) * steps; at < end;) {
    const Piece<T> p(a, at, end, direction, c);
#pragma unroll
    for (int i = 1; i < kTaps; ++i) {
      const int64_t by = ahead - (kTaps - i);
      channels.push(
          load_pack_if<kWide>(p.first + by >= 0 && p.first + by < p.length, a.x + p.x + by * p.x_step));
    }
    fn(p);
    at += p.last - p.first;
  }
}

template <int kTaps, int kWide, class T>
__global__ void __launch_bounds__(kMostThreads, kBlocksForward)
    short_conv_fwd_walk(ShortConvForward<T> a, int64_t steps) {
  constexpr int kAtOnce = 16 / int(sizeof(T));
  const int64_t direction = blockIdx.z, c = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * kWide;
  if (c >= a.s.c) return;
  Channels<kTaps, kWide, T> channels(a, direction * a.s.c + c);
  const int64_t ahead = a.s.ahead();
  walk(a, steps, channels, direction, c, ahead, [&](const Piece<T>& p) {
    const T* x = a.x + p.x + ahead * p.x_step;
    T* y = a.y + p.packed;
    int64_t left_of_x = p.length - p.first - ahead;
    for (int64_t left = p.last - p.first; left > 0; left -= kAtOnce, left_of_x -= kAtOnce) {
      const int64_t there = min(left, left_of_x);
      Pack<T, kWide> rows[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) rows[u] = load_pack_if<kWide>(u < there, x + u * p.x_step);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        channels.push(rows[u]);
        float out[kWide];
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
          const float sum = channels.sum(j);
          out[j] = sum * sigmoid_for<T>(sum);
        }
        if (u < left) store_acc(y + u * p.packed_step, out);
      }
      x += kAtOnce * p.x_step, y += kAtOnce * p.packed_step;
    }
  });
}

/// g_t = gy_t silu'(sum before), gx_s = sum over i of w_i g_{s+(k-1)-i}: g of a piece and of the k - 1 steps
/// behind it are made here (all of them `ahead` steps before where sums meet tokens behind theirs); what a
/// piece adds to the gradients of w and bias is of its own steps only.
template <int kTaps, int kWide, class T>
__global__ void __launch_bounds__(kMostThreads, kBlocksBackward)
    short_conv_bwd_walk(ShortConvBackward<T> b, int64_t steps) {
  constexpr int kAtOnce = 8 / int(sizeof(T));
  const ShortConvForward<T>& a = b.forward;
  const int64_t direction = blockIdx.z, c = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * kWide;
  if (c >= a.s.c) return;
  Channels<kTaps, kWide, T> channels(a, direction * a.s.c + c);
  float gw[kTaps][kWide] = {}, gbias[kWide] = {};
  const int ahead = int(a.s.ahead());
  walk(a, steps, channels, direction, c, 0, [&](const Piece<T>& p) {
    float g[kTaps][kWide] = {};
    const int own = int(p.last - p.first), there = int(min(p.length - p.first, int64_t(own + kTaps - 1)));
    const int first = int(min(p.first, int64_t(ahead))) - ahead;  // <= 0: that many steps are of no token
    const int gy_there = int(min(p.length - p.first + ahead, int64_t(own + kTaps - 1)));
    const T *x = a.x + p.x, *gy = b.gy + p.packed - ahead * p.packed_step;
    T* gx = b.gx == nullptr ? nullptr : b.gx + p.packed - (kTaps - 1) * p.packed_step;
    for (int n = 0; n < own + kTaps - 1; n += kAtOnce) {
      Pack<T, kWide> rows[kAtOnce], slopes[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        rows[u] = load_pack_if<kWide>(n + u < there, x + u * p.x_step);
        slopes[u] = load_pack_if<kWide>(n + u + first >= 0 && n + u < gy_there, gy + u * p.packed_step);
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        channels.push(rows[u]);
        float out[kWide];
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
          const float sum = channels.sum(j), s = sigmoid_for<T>(sum);
          const float slope = to_acc(slopes[u].v[j]) * (s * (1 + sum * (1 - s)));
          const float mine = n + u >= ahead && n + u < own + ahead ? slope : 0;
          gbias[j] += mine;
#pragma unroll
          for (int i = 0; i < kTaps; ++i) gw[i][j] += mine * channels.window[i][j];
#pragma unroll
          for (int i = 0; i + 1 < kTaps; ++i) g[i][j] = g[i + 1][j];
          g[kTaps - 1][j] = slope;  // of step n + u - ahead
          out[j] = 0;
#pragma unroll
          for (int i = 0; i < kTaps; ++i) out[j] += channels.w[i][j] * g[kTaps - 1 - i][j];
        }
        const int done = n + u - (kTaps - 1);
        if (gx != nullptr && done >= 0 && done < own) store_acc(gx + u * p.packed_step, out);
      }
      x += kAtOnce * p.x_step, gy += kAtOnce * p.packed_step;
      if (gx != nullptr) gx += kAtOnce * p.packed_step;
    }
  });
  if (b.partial == nullptr) return;
#pragma unroll
  for (int j = 0; j < kWide; ++j) {
    float* to =
        b.partial + ((int64_t(blockIdx.x) * a.s.directions + direction) * a.s.c + c + j) * (a.s.taps + 1);
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      if (const int64_t tap = i - (kTaps - a.s.taps); tap >= 0) to[tap] = gw[i][j];
    to[a.s.taps] = gbias[j];
  }
}

/// Channels of a thread: as many as its registers hold beside the taps of each.
template <int kTaps>
constexpr int kWidest = kTaps == 4 ? 4 : 2;

struct Launch {
  int wide;  // channels of a thread
  unsigned threads, groups, ranges;
  int64_t steps;  // of a range
  unsigned directions;
  dim3 grid() const { return dim3(ranges, groups, directions); }
};
/// Ranges fill the device once, so that all of them end at the same time.
Launch launch_of(const ShortConvShape& s, int wide, int blocks) {
  const int64_t lanes = div_up<int64_t>(s.c, wide), groups = div_up<int64_t>(lanes, kMostThreads),
                threads = round_up<int64_t>(div_up(lanes, groups), 32), all = s.rows();
  const int64_t resident = int64_t(device_limits().sm_count) * (kMostThreads * blocks / threads);
  const int64_t ranges =
      std::min(std::max<int64_t>(resident / (s.directions * groups), 1), div_up<int64_t>(all, kLeastSteps));
  const int64_t steps = div_up(all, ranges);
  return {wide,  unsigned(threads),     unsigned(groups), unsigned(div_up(all, steps)),
          steps, unsigned(s.directions)};
}

template <class T>
int wide_of(const ShortConvForward<T>& a, const void* y, const void* gy) {
  const int wide = a.s.taps <= 4 ? kWidest<4> : kWidest<8>;
  const int64_t all = a.s.c | a.stride_b | a.stride_t | a.stride_r;
  const uintptr_t at =
      reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(y) | reinterpret_cast<uintptr_t>(gy);
  return all % wide == 0 && at % (size_t(wide) * sizeof(T)) == 0 ? wide : 1;
}
template <class T>
Launch launch_of(const ShortConvBackward<T>& a) {
  return launch_of(a.forward.s, wide_of(a.forward, a.gx, a.gy), kBlocksBackward);
}

}  // namespace

template <class T>
int64_t short_conv_parts(const ShortConvBackward<T>& a) {
  return launch_of(a).ranges;
}

template <class T>
void short_conv_fwd(const ShortConvForward<T>& a, void* stream) {
  const Launch l = launch_of(a.s, wide_of(a, a.y, nullptr), kBlocksForward);
  auto* kernel = a.s.taps <= 4
                     ? l.wide > 1 ? short_conv_fwd_walk<4, kWidest<4>, T> : short_conv_fwd_walk<4, 1, T>
                 : l.wide > 1 ? short_conv_fwd_walk<8, kWidest<8>, T>
                              : short_conv_fwd_walk<8, 1, T>;
  kernel<<<l.grid(), l.threads, 0, as_stream(stream)>>>(a, l.steps);
  check_launch("short_conv_fwd_walk", stream);
}

template <class T>
void short_conv_bwd(const ShortConvBackward<T>& a, void* stream) {
  const Launch l = launch_of(a);
  auto* kernel = a.forward.s.taps <= 4
                     ? l.wide > 1 ? short_conv_bwd_walk<4, kWidest<4>, T> : short_conv_bwd_walk<4, 1, T>
                 : l.wide > 1 ? short_conv_bwd_walk<8, kWidest<8>, T>
                              : short_conv_bwd_walk<8, 1, T>;
  kernel<<<l.grid(), l.threads, 0, as_stream(stream)>>>(a, l.steps);
  check_launch("short_conv_bwd_walk", stream);
}

template void short_conv_fwd(const ShortConvForward<float>&, void*);
template void short_conv_fwd(const ShortConvForward<bf16>&, void*);
template int64_t short_conv_parts(const ShortConvBackward<float>&);
template int64_t short_conv_parts(const ShortConvBackward<bf16>&);
template void short_conv_bwd(const ShortConvBackward<float>&, void*);
template void short_conv_bwd(const ShortConvBackward<bf16>&, void*);

}  // namespace occam::kernels
