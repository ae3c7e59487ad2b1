// Lanes of ops/scan.cuh with kStates complex states each.
#include "ops/s4d/kernel.h"

#include "core/cuda/math.cuh"
#include "ops/s4d/coefficients.h"
#include "ops/scan.cuh"

namespace occam::kernels {

namespace {

constexpr int kTokens = 16;
constexpr int kEach = kTokens * kChannels / kThreads;

/// What is written: end states of segments from 0, or results.
enum class Pass { sums, results };

/// Channel of which the thread copies every fourth token, and its place in the block.
struct Copied {
  int column;
  int64_t channel, of;  // of: a channel that there is
  __device__ __forceinline__ Copied(const ChannelScanShape& s, const Spot& at) {
    column = int(threadIdx.x) % kChannels;
    channel = at.channel - at.local + column, of = min(channel, s.c - 1);
  }
};

/// Elements of position p of [b,t,...] arrays lie at start + p step.
struct Walk {
  int64_t start, step;
  __device__ __forceinline__ Walk(const Spot& at, bool backwards, int64_t row, int64_t within) {
    start = at.edge(backwards) * row + within;
    step = backwards ? -row : row;
  }
  __device__ __forceinline__ int64_t at(int64_t position) const { return start + position * step; }
};

template <int kStates>
struct States {
  float factor_re[kStates], factor_im[kStates], weight_re[kStates], weight_im[kStates], re[kStates],
      im[kStates];
  /// Zeros for states that there are not.
  __device__ __forceinline__ States(const float* coefficients, const ChannelScanShape& s, const Spot& at) {
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      const int64_t state = at.lane * kStates + k;
      float4 c = make_float4(0, 0, 0, 0);
      if (at.valid && state < s.n)
        c = reinterpret_cast<const float4*>(coefficients)[(at.direction * s.c + at.channel) * s.n + state];
      factor_re[k] = c.x, factor_im[k] = c.y, weight_re[k] = c.z, weight_im[k] = c.w;
      re[k] = im[k] = 0;
    }
  }
  __device__ __forceinline__ void advance(int k, float u) {
    const float r = factor_re[k] * re[k] - factor_im[k] * im[k] + u;
    im[k] = factor_re[k] * im[k] + factor_im[k] * re[k];
    re[k] = r;
  }
};

/// factor^count.
__device__ __forceinline__ Complex<float> power(Complex<float> factor, int64_t count) {
  Complex<float> result{1, 0};
  for (; count > 0; count >>= 1) {
    if (count & 1) result = result * factor;
    factor = factor * factor;
  }
  return result;
}

template <class T, int kStates>
__global__ void __launch_bounds__(kThreads)
    s4d_scan_tiles(S4dScan<T, float> a, Segments segments, float2* ends, Pass pass) {
  __shared__ float u[kTokens][kChannels];
  const ChannelScanShape s = a.s;
  const Spot at(s, segments);
  if (pass == Pass::sums && at.segment + 1 == segments.count) return;
  States<kStates> x(a.coefficients, s, at);
  const int64_t chains = s.chains();
  if (pass == Pass::results && at.segment > 0 && at.valid)
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      const int64_t state = at.lane * kStates + k;
      if (state >= s.n) continue;
      const Complex<float> through = power({x.factor_re[k], x.factor_im[k]}, segments.length);
      Complex<float> sum;
      for (int64_t j = 0; j < at.segment; ++j) {
        const float2 end = ends[(j * chains + at.chain) * s.n + state];
        sum = through * sum + Complex<float>{end.x, end.y};
      }
      x.re[k] = sum.re, x.im[k] = sum.im;
    }
  const bool is_backward = a.is_backward(), backwards = (at.direction == 1) != is_backward;
  const Copied copied(s, at);
  const Walk shared_row(at, backwards, s.c, copied.of);                            // [b,t,c]
  const Walk own_row(at, backwards, 2 * s.c, s.y_at(0, at.direction, copied.of));  // [b,t,h,2,w]
  const Walk from_row = is_backward ? own_row : shared_row, to_row = is_backward ? shared_row : own_row;
  const T* from = is_backward ? a.gy : a.u;
  float* gu = a.gu + at.direction * s.rows() * s.c;
  const float skip = at.valid ? to_acc(a.skip[at.direction * s.c + at.channel]) : 0.0f;
  for (int64_t position = at.first; position < at.last; position += kTokens) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int token = int(threadIdx.x) / kChannels + i * kLanes;
      u[token][copied.column] = position + token < at.last && copied.channel < s.c
                                    ? to_acc(from[from_row.at(position + token)])
                                    : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int four = 0; four < kTokens; four += 4) {
      float y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float in = u[four + i][at.local];
        y[i] = 0;
#pragma unroll
        for (int k = 0; k < kStates; ++k) {
          x.advance(k, in);
          y[i] += x.weight_re[k] * x.re[k] - x.weight_im[k] * x.im[k];
        }
      }
      // Only the channel's own lanes, which have read it, use this element.
      float& place = u[four + at.lane][at.local];
      place = sum_over_lanes(y, at.lane) + skip * place;
      __syncwarp();
    }
    if (pass == Pass::sums) continue;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int token = int(threadIdx.x) / kChannels + i * kLanes;
      if (position + token >= at.last || copied.channel >= s.c) continue;
      if (is_backward)
        gu[to_row.at(position + token)] = u[token][copied.column];
      else
        a.y[to_row.at(position + token)] = from_acc<T>(u[token][copied.column]);
    }
  }
  // A segment that others follow is whole, so no step without a token changed its states.
  if (pass == Pass::sums && at.valid)
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (at.lane * kStates + k < s.n)
        ends[(at.segment * chains + at.chain) * s.n + at.lane * kStates + k] = make_float2(x.re[k], x.im[k]);
}

/// States x and their slopes x' = dx / d factor, x'_t = factor x'_{t-1} + x_{t-1}, on the way forward; ends:
/// x, x'.
template <class T, int kStates>
__global__ void __launch_bounds__(kThreads, 2)
    s4d_sums_tiles(S4dSums<T, float> a, Segments segments, float4* ends, Pass pass) {
  __shared__ float u[kTokens][kChannels], gy[kTokens][kChannels];
  const ChannelScanShape s = a.s;
  const Spot at(s, segments);
  if (pass == Pass::sums && at.segment + 1 == segments.count) return;
  States<kStates> x(a.coefficients, s, at);
  float slope_re[kStates] = {}, slope_im[kStates] = {};
  float sums[kStates][4] = {};
  const int64_t chains = s.chains();
  if (pass == Pass::results && at.segment > 0 && at.valid)
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      const int64_t state = at.lane * kStates + k;
      if (state >= s.n) continue;
      // (f^L)' = L f^(L-1)
      const Complex<float> before = power({x.factor_re[k], x.factor_im[k]}, segments.length - 1);
      const Complex<float> through = before * Complex<float>{x.factor_re[k], x.factor_im[k]};
      Complex<float> sum, slope;
      for (int64_t j = 0; j < at.segment; ++j) {
        const float4 end = ends[(j * chains + at.chain) * s.n + state];
        slope = through * slope + float(segments.length) * (before * sum) + Complex<float>{end.z, end.w};
        sum = through * sum + Complex<float>{end.x, end.y};
      }
      x.re[k] = sum.re, x.im[k] = sum.im, slope_re[k] = slope.re, slope_im[k] = slope.im;
    }
  const Copied copied(s, at);
  const Walk u_row(at, at.direction == 1, s.c, copied.of);
  const Walk gy_row(at, at.direction == 1, 2 * s.c, s.y_at(0, at.direction, copied.of));
  float by_u = 0;
  for (int64_t position = at.first; position < at.last; position += kTokens) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int token = int(threadIdx.x) / kChannels + i * kLanes;
      const bool there = position + token < at.last && copied.channel < s.c;
      u[token][copied.column] = there ? to_acc(a.u[u_row.at(position + token)]) : 0.0f;
      gy[token][copied.column] = there ? to_acc(a.gy[gy_row.at(position + token)]) : 0.0f;
      by_u += u[token][copied.column] * gy[token][copied.column];
    }
    __syncthreads();
#pragma unroll 4
    for (int token = 0; token < kTokens; ++token) {
      const float in = u[token][at.local], gradient = gy[token][at.local];
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        const float r = x.factor_re[k] * slope_re[k] - x.factor_im[k] * slope_im[k] + x.re[k];
        slope_im[k] = x.factor_re[k] * slope_im[k] + x.factor_im[k] * slope_re[k] + x.im[k];
        slope_re[k] = r;
        x.advance(k, in);
        sums[k][0] += gradient * x.re[k];
        sums[k][1] += gradient * x.im[k];
        sums[k][2] += gradient * slope_re[k];
        sums[k][3] += gradient * slope_im[k];
      }
    }
  }
  if (pass == Pass::sums) {
    if (at.valid)
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        if (at.lane * kStates + k < s.n)
          ends[(at.segment * chains + at.chain) * s.n + at.lane * kStates + k] =
              make_float4(x.re[k], x.im[k], slope_re[k], slope_im[k]);
    return;
  }
  if (at.valid)
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      if (at.lane * kStates + k < s.n)
        reinterpret_cast<float4*>(a.states)[(at.part + at.channel) * s.n + at.lane * kStates + k] =
            make_float4(sums[k][0], sums[k][1], sums[k][2], sums[k][3]);
  __syncthreads();
  u[int(threadIdx.x) / kChannels][copied.column] = by_u;
  __syncthreads();
  if (int(threadIdx.x) < kChannels && copied.channel < s.c)
    a.skip[at.part + copied.channel] =
        u[0][copied.column] + u[1][copied.column] + u[2][copied.column] + u[3][copied.column];
}

template <class T>
__global__ void s4d_coefficients_states(ChannelScanShape s, S4dParameters<T> p, float4* coefficients) {
  OCCAM_GRID_LOOP(i, 2 * s.c * s.n) {
    const S4dState<float> state(to_acc(p.log_dt[i / s.n]), to_acc(p.a_log[i]), to_acc(p.a_im[i]));
    const Complex<float> out{to_acc(p.out[2 * i]), to_acc(p.out[2 * i + 1])}, weight = out * state.hold;
    coefficients[i] = make_float4(state.factor.re, state.factor.im, 2 * weight.re, 2 * weight.im);
  }
}

template <class T>
__global__ void s4d_parameter_grads_channels(ChannelScanShape s, S4dParameters<T> p, const float4* sums,
                                             S4dParameterGrads<float> g) {
  OCCAM_GRID_LOOP(channel, 2 * s.c) {
    float log_dt = 0;
    for (int64_t i = channel * s.n; i < (channel + 1) * s.n; ++i) {
      const float4 sum = sums[i];
      const S4dStateGrads<float> grads(
          S4dState<float>(to_acc(p.log_dt[channel]), to_acc(p.a_log[i]), to_acc(p.a_im[i])),
          {to_acc(p.out[2 * i]), to_acc(p.out[2 * i + 1])}, {sum.x, sum.y}, {sum.z, sum.w});
      log_dt += grads.log_dt;
      g.a_log[i] = grads.a_log, g.a_im[i] = grads.a_im;
      g.out[2 * i] = grads.out.re, g.out[2 * i + 1] = grads.out.im;
    }
    g.log_dt[channel] = log_dt;
  }
}

/// kernel(a, segments, ends, pass), with a first pass when there are segments.
template <class Args, class Ends>
void launch(void (*kernel)(Args, Segments, Ends*, Pass), const char* name, const Args& a, float* workspace,
            void* stream) {
  const Segments segments = segments_of(a.s, kTokens);
  for (Pass pass : {Pass::sums, Pass::results}) {
    if (pass == Pass::sums && segments.count == 1) continue;
    kernel<<<blocks_of(a.s, segments), kThreads, 0, as_stream(stream)>>>(
        a, segments, reinterpret_cast<Ends*>(workspace), pass);
    check_launch(name, stream);
  }
}

}  // namespace

int64_t s4d_workspace(const ChannelScanShape& s) {
  const Segments segments = segments_of(s, kTokens);
  return segments.count > 1 ? 4 * segments.count * s.chains() * s.n : 0;
}
int64_t s4d_parts(const ChannelScanShape& s) { return s.b * segments_of(s, kTokens).count; }

template <class T>
void s4d_coefficients(const ChannelScanShape& s, const S4dParameters<T>& p, float* coefficients,
                      void* stream) {
  s4d_coefficients_states<<<grid_for(2 * s.c * s.n, 128), 128, 0, as_stream(stream)>>>(
      s, p, reinterpret_cast<float4*>(coefficients));
  check_launch("s4d_coefficients_states", stream);
}
template <class T>
void s4d_parameter_grads(const ChannelScanShape& s, const S4dParameters<T>& p, const float* sums,
                         const S4dParameterGrads<float>& g, void* stream) {
  s4d_parameter_grads_channels<<<grid_for(2 * s.c, 64), 64, 0, as_stream(stream)>>>(
      s, p, reinterpret_cast<const float4*>(sums), g);
  check_launch("s4d_parameter_grads_channels", stream);
}
template <class T>
void s4d_scan(const S4dScan<T, float>& a, float* workspace, void* stream) {
  launch(a.s.n <= 16 ? s4d_scan_tiles<T, 4> : s4d_scan_tiles<T, 8>, "s4d_scan_tiles", a, workspace, stream);
}
template <class T>
void s4d_sums(const S4dSums<T, float>& a, float* workspace, void* stream) {
  launch(a.s.n <= 16 ? s4d_sums_tiles<T, 4> : s4d_sums_tiles<T, 8>, "s4d_sums_tiles", a, workspace, stream);
}

#define OCCAM_INSTANTIATE(T)                                                                        \
  template void s4d_coefficients(const ChannelScanShape&, const S4dParameters<T>&, float*, void*);  \
  template void s4d_parameter_grads(const ChannelScanShape&, const S4dParameters<T>&, const float*, \
                                    const S4dParameterGrads<float>&, void*);                        \
  template void s4d_scan(const S4dScan<T, float>&, float*, void*);                                  \
  template void s4d_sums(const S4dSums<T, float>&, float*, void*)
OCCAM_INSTANTIATE(float);
OCCAM_INSTANTIATE(bf16);
#undef OCCAM_INSTANTIATE

}  // namespace occam::kernels
