#pragma once
// Any kernel and any number of channels, from global memory.
#include "ops/dwconv/grid.cuh"

namespace occam::kernels {

namespace {

/// The part of a thread: blockIdx.x is the image, y and the warps share out its units (row, segment), z and
/// lanes the channels.
template <class T, int V>
struct Walk {
  int channel, c, gh, gw, units;
  const T* from;
  T* to;
  float base[V] = {};

  __device__ explicit Walk(const Convolve<T>& a)
      : channel((int(blockIdx.z) * kLanes + int(threadIdx.x)) * V),
        c(int(a.s.c)),
        gh(int(a.s.gh)),
        gw(int(a.s.gw)),
        units(int(a.s.gh) * a.segments) {
    const int64_t first = (int64_t(blockIdx.x) * a.s.tokens() + a.s.prefix) * a.s.c + channel;
    from = a.from + first, to = a.to + first;
    if (channel >= c) return;
    if (a.bias != nullptr) load_acc(a.bias + channel, base);
    if (a.image_base != nullptr) load_acc(a.image_base + int64_t(blockIdx.x) * c + channel, base);
  }
  __device__ int64_t at(int row, int column) const { return (int64_t(row) * gw + column) * c; }
  __device__ void put_sum(const Convolve<T>& a, int unit, const float (&sum)[V]) const {
    if (a.sums != nullptr) store_acc(a.sums + (int64_t(blockIdx.x) * units + unit) * c + channel, sum);
  }
};

template <class T, int V>
__global__ void __launch_bounds__(kLanes* kAnyWarps) dwconv_any(Convolve<T> a) {
  const Walk<T, V> t(a);
  if (t.channel >= t.c) return;
  const int kh = int(a.s.kh), kw = int(a.s.kw);
  for (int unit = int(blockIdx.y * blockDim.y + threadIdx.y); unit < t.units;
       unit += int(gridDim.y * blockDim.y)) {
    const int r = unit / a.segments, first = (unit - r * a.segments) * kSegment;
    const int last = min(t.gw, first + kSegment);
    float over_patches[V] = {};
    for (int q = first; q < last; q += kStrip) {
      float sum[kStrip][V];
#pragma unroll
      for (int n = 0; n < kStrip; ++n)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[n][v] = t.base[v];
      for (int i = max(0, kh / 2 - r); i < min(kh, t.gh + kh / 2 - r); ++i)
        for (int j = 0; j < kw; ++j) {
          const int row = r + i - kh / 2, tap = i * kw + j;
          float w[V];
          load_acc(a.w + int64_t(a.flip ? kh * kw - 1 - tap : tap) * t.c + t.channel, w);
#pragma unroll
          for (int n = 0; n < kStrip; ++n) {
            const int p = q + n + j - kw / 2;
            if (p < 0 || p >= t.gw) continue;
            float x[V];
            load_acc(t.from + t.at(row, p), x);
#pragma unroll
            for (int v = 0; v < V; ++v) sum[n][v] += w[v] * x[v];
          }
        }
#pragma unroll
      for (int n = 0; n < kStrip; ++n)
        if (q + n < last) {
          float x[V];
          load_acc(t.from + t.at(r, q + n), x);
#pragma unroll
          for (int v = 0; v < V; ++v) over_patches[v] += x[v];
          store_acc(t.to + t.at(r, q + n), sum[n]);
        }
    }
    t.put_sum(a, unit, over_patches);
  }
}

/// Rows (image, r) of the grid that a warp visits, without a division at each.
struct Rows {
  int64_t image;
  int r, step_r, gh;
  int64_t step_image;

  __device__ Rows(const DwconvShape& s, int64_t first, int64_t step) : gh(int(s.gh)) {
    image = first / s.gh, r = int(first % s.gh), step_image = step / s.gh, step_r = int(step % s.gh);
  }
  __device__ void advance() {
    image += step_image, r += step_r;
    if (r >= gh) r -= gh, ++image;
  }
};

/// The same for any kernel: blockIdx.z is a row of it and kStrip of its taps, or, the last, the sum of gy.
template <class T, int V>
__global__ void __launch_bounds__(kLanes* kAnyWarps)
    dwconv_bwd_any(DwconvBackward<T, float> a, float* partial) {
  const DwconvShape& s = a.s;
  const int channel = (int(blockIdx.y) * kLanes + int(threadIdx.x)) * V, c = int(s.c), gw = int(s.gw);
  const int kw = int(s.kw), strips = div_up(kw, kStrip), i = int(blockIdx.z) / strips;
  const int j = int(blockIdx.z) % strips * kStrip;
  const bool inside = channel < c, rest = blockIdx.z + 1 == gridDim.z;
  float sum[kStrip][V] = {};
  if (inside) {
    Rows n(s, int64_t(blockIdx.x) * blockDim.y + threadIdx.y, int64_t(gridDim.x) * blockDim.y);
    for (; n.image < s.b; n.advance()) {
      const int seen = n.r + i - int(s.kh) / 2;
      if (!rest && (seen < 0 || seen >= n.gh)) continue;
      const int64_t first = (n.image * s.tokens() + s.prefix) * c + channel;
      const T *gy = a.gy + first + int64_t(n.r) * gw * c, *x = a.x + first + int64_t(seen) * gw * c;
      float window[kStrip][V];  // x at columns q + j + k - kw/2
      auto at = [&](int p, float(&to)[V]) {
        if (!rest && p >= 0 && p < gw) return load_acc(x + int64_t(p) * c, to);
#pragma unroll
        for (int v = 0; v < V; ++v) to[v] = rest ? 1.0f : 0.0f;
      };
#pragma unroll
      for (int k = 0; k + 1 < kStrip; ++k) at(j + k - kw / 2, window[k]);
      for (int q = 0; q < gw; ++q) {
        float g[V];
        load_acc(gy + int64_t(q) * c, g);
        at(q + j + kStrip - 1 - kw / 2, window[kStrip - 1]);
#pragma unroll
        for (int k = 0; k < kStrip; ++k)
#pragma unroll
          for (int v = 0; v < V; ++v) {
            sum[k][v] += g[v] * window[k][v];
            if (k > 0) window[k - 1][v] = window[k][v];
          }
      }
    }
  }
  const int64_t slot = int64_t(blockIdx.x) * (s.taps() + 1) + (rest ? s.taps() : i * kw + j);
  __shared__ float parts[kAnyWarps * kLanes];
  put_block_sums(sum, rest ? 1 : min(kStrip, kw - j), inside, partial + slot * c + channel, c, parts);
}

}  // namespace

}  // namespace occam::kernels
