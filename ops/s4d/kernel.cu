// Chains of ops/scan.cuh with kStates complex states a lane. Every thread reads and writes its own channel's
// elements: neighbouring threads have neighbouring channels, and nothing goes through shared memory.
#include "ops/s4d/kernel.h"

#include "ops/s4d/coefficients.h"
#include "ops/scan.cuh"

namespace occam::kernels {

namespace {

constexpr int kTokens = 4;           // read together, and so many more ahead
constexpr int kShortest = 16;        // segment
constexpr int kThreadsAtOnce = 512;  // on a multiprocessor
template <int kSplit>
constexpr int kBlocks = kThreadsAtOnce / (kSplit * kChannels);

/// What is written: end states of segments from 0, or results.
enum class Pass { sums, results };

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
    const float r = fmaf(factor_re[k], re[k], fmaf(-factor_im[k], im[k], u));
    im[k] = fmaf(factor_re[k], im[k], factor_im[k] * re[k]);
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

template <class T, int kStates, int kSplit>
__global__ void __launch_bounds__(kChannels* kSplit, kBlocks<kSplit>)
    s4d_scan_chains(S4dScan<T, float> a, Segments segments, float2* ends, Pass pass) {
  const ChannelScanShape s = a.s;
  const Spot at(s, segments, kSplit);
  if (pass == Pass::sums && at.segment + 1 == segments.count) return;
  States<kStates> x(a.coefficients, s, at);
  const int64_t chains = s.chains();
  if (pass == Pass::results && at.segment > 0 && at.valid) {
    Complex<float> through[kStates];
#pragma unroll
    for (int k = 0; k < kStates; ++k) through[k] = power({x.factor_re[k], x.factor_im[k]}, segments.length);
    for (int64_t j = 0; j < at.segment; ++j)
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        const int64_t state = at.lane * kStates + k;
        if (state >= s.n) continue;
        const float2 end = ends[(j * chains + at.chain) * s.n + state];
        const Complex<float> sum =
            through[k] * Complex<float>{x.re[k], x.im[k]} + Complex<float>{end.x, end.y};
        x.re[k] = sum.re, x.im[k] = sum.im;
      }
  }
  const bool is_backward = a.is_backward(), backwards = (at.direction == 1) != is_backward;
  const int64_t channel = at.some_channel(s), row = at.edge(backwards);
  const int64_t shared_at = row * s.c + channel, shared_step = backwards ? -s.c : s.c;    // in [b,t,c]
  const int64_t own_at = s.y_at(row, at.direction, channel), own_step = 2 * shared_step;  // in [b,t,h,2,w]
  Ahead<T, kTokens> in(is_backward ? a.gy + own_at : a.u + shared_at, is_backward ? own_step : shared_step,
                       at);
  float* gu = a.gu + at.direction * s.rows() * s.c + shared_at + at.first * shared_step;
  T* y = a.y + own_at + at.first * own_step;
  const float skip = to_acc(a.skip[at.direction * s.c + channel]);
  const bool writes = pass == Pass::results && at.valid && at.lane == 0;
  for (int position = at.first; position < at.last; position += kTokens) {
    float u[kTokens];
    in.take(u);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      float even = skip * u[i], odd = 0;
      if (kSplit > 1 && at.lane > 0) even = 0;
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        x.advance(k, u[i]);
        float& sum = k % 2 == 0 ? even : odd;
        sum = fmaf(x.weight_re[k], x.re[k], fmaf(-x.weight_im[k], x.im[k], sum));
      }
      float sum = even + odd;
#pragma unroll
      for (int lanes = 1; lanes < kSplit; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      if (writes && position + i < at.last) {
        if (is_backward)
          *gu = sum;
        else
          *y = from_acc<T>(sum);
      }
      gu += shared_step, y += own_step;
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
template <class T, int kStates, int kSplit>
__global__ void __launch_bounds__(kChannels* kSplit, kBlocks<kSplit>)
    s4d_sums_chains(S4dSums<T, float> a, Segments segments, float4* ends, Pass pass) {
  const ChannelScanShape s = a.s;
  const Spot at(s, segments, kSplit);
  if (!at.valid || (pass == Pass::sums && at.segment + 1 == segments.count)) return;
  States<kStates> x(a.coefficients, s, at);
  float slope_re[kStates] = {}, slope_im[kStates] = {};
  float sums[kStates][4] = {};
  const int64_t chains = s.chains();
  if (pass == Pass::results && at.segment > 0) {
    Complex<float> before[kStates], through[kStates];  // (f^L)' = L f^(L-1)
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      const Complex<float> factor{x.factor_re[k], x.factor_im[k]};
      before[k] = power(factor, segments.length - 1), through[k] = before[k] * factor;
      before[k] = float(segments.length) * before[k];
    }
    for (int64_t j = 0; j < at.segment; ++j)
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        const int64_t state = at.lane * kStates + k;
        if (state >= s.n) continue;
        const float4 end = ends[(j * chains + at.chain) * s.n + state];
        const Complex<float> sum{x.re[k], x.im[k]}, slope{slope_re[k], slope_im[k]};
        const Complex<float> next = through[k] * sum + Complex<float>{end.x, end.y},
                             next_slope = through[k] * slope + before[k] * sum + Complex<float>{end.z, end.w};
        x.re[k] = next.re, x.im[k] = next.im, slope_re[k] = next_slope.re, slope_im[k] = next_slope.im;
      }
  }
  const int64_t row = at.edge(at.direction == 1), step = at.direction == 1 ? -s.c : s.c;
  Ahead<T, kTokens> of_u(a.u + row * s.c + at.channel, step, at);
  Ahead<T, kTokens> of_gy(a.gy + s.y_at(row, at.direction, at.channel), 2 * step, at);
  float by_u = 0;
  for (int position = at.first; position < at.last; position += kTokens) {
    float u[kTokens], gy[kTokens];
    of_u.take(u), of_gy.take(gy);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      by_u = fmaf(u[i], gy[i], by_u);
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        const float re = x.factor_re[k], im = x.factor_im[k];
        const float r = fmaf(re, slope_re[k], fmaf(-im, slope_im[k], x.re[k]));
        slope_im[k] = fmaf(re, slope_im[k], fmaf(im, slope_re[k], x.im[k]));
        slope_re[k] = r;
        x.advance(k, u[i]);
        sums[k][0] = fmaf(gy[i], x.re[k], sums[k][0]);
        sums[k][1] = fmaf(gy[i], x.im[k], sums[k][1]);
        sums[k][2] = fmaf(gy[i], slope_re[k], sums[k][2]);
        sums[k][3] = fmaf(gy[i], slope_im[k], sums[k][3]);
      }
    }
  }
  const bool ends_only = pass == Pass::sums;
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    const int64_t state = at.lane * kStates + k;
    if (state >= s.n) continue;
    if (ends_only)
      ends[(at.segment * chains + at.chain) * s.n + state] =
          make_float4(x.re[k], x.im[k], slope_re[k], slope_im[k]);
    else
      reinterpret_cast<float4*>(a.states)[(at.part + at.channel) * s.n + state] =
          make_float4(sums[k][0], sums[k][1], sums[k][2], sums[k][3]);
  }
  if (!ends_only && at.lane == 0) a.skip[at.part + at.channel] = by_u;
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

/// `one` lane a channel, or with few chains or many states four.
struct Walk {
  Segments segments;
  int lanes;
};
Walk walk_of(const ChannelScanShape& s, int one) {
  const Segments few = segments_of(s, kShortest, kThreadsAtOnce / (one * kChannels));
  if (s.n <= 16 && few.count == 1) return {few, one};
  return {segments_of(s, kShortest, kThreadsAtOnce / (4 * kChannels)), 4};
}
Walk scan_walk(const ChannelScanShape& s) { return walk_of(s, 1); }
Walk sums_walk(const ChannelScanShape& s) { return walk_of(s, 2); }

/// kernel(a, segments, ends, pass), with a first pass when there are segments.
template <class Args, class Ends>
void launch(void (*kernel)(Args, Segments, Ends*, Pass), const char* name, const Args& a, const Walk& walk,
            float* workspace, void* stream) {
  for (Pass pass : {Pass::sums, Pass::results}) {
    if (pass == Pass::sums && walk.segments.count == 1) continue;
    kernel<<<blocks_of(a.s, walk.segments), kChannels * walk.lanes, 0, as_stream(stream)>>>(
        a, walk.segments, reinterpret_cast<Ends*>(workspace), pass);
    check_launch(name, stream);
  }
}

}  // namespace

int64_t s4d_workspace(const ChannelScanShape& s) {
  const int64_t scan = scan_walk(s).segments.count, sums = sums_walk(s).segments.count;
  return std::max(scan > 1 ? 2 * scan : 0, sums > 1 ? 4 * sums : 0) * s.chains() * s.n;
}
int64_t s4d_parts(const ChannelScanShape& s) { return s.b * sums_walk(s).segments.count; }

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
  const Walk walk = scan_walk(a.s);
  launch(walk.lanes == 1 ? s4d_scan_chains<T, 16, 1>
         : a.s.n <= 16   ? s4d_scan_chains<T, 4, 4>
                         : s4d_scan_chains<T, 8, 4>,
         "s4d_scan_chains", a, walk, workspace, stream);
}
template <class T>
void s4d_sums(const S4dSums<T, float>& a, float* workspace, void* stream) {
  const Walk walk = sums_walk(a.s);
  launch(walk.lanes == 2 ? s4d_sums_chains<T, 8, 2>
         : a.s.n <= 16   ? s4d_sums_chains<T, 4, 4>
                         : s4d_sums_chains<T, 8, 4>,
         "s4d_sums_chains", a, walk, workspace, stream);
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
