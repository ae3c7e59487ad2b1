// One thread a chain or two: neighbouring threads have neighbouring channels, steps are read in groups so
// that enough loads are under way; backward, which computes more, one group ahead of what is computed.
#include "ops/diagonal_scan/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/vec.cuh"
#include "ops/diagonal_scan/cells.cuh"

namespace occam::kernels {

namespace {

constexpr int kThreads = 128;
constexpr int kSteps = 6;            // read together
constexpr int kThreadsWanted = 512;  // on a multiprocessor
template <class T>
constexpr int kBlocks = sizeof(T) == 2 ? 6 : 4;  // of a multiprocessor
/// Backward: steps read together, so many more while these are computed. Three gates leave room for less,
/// with two the compiler does best left alone.
template <class Cell>
constexpr int kStepsBack = Cell::kParts == 3 ? 2 : 3;
template <class Cell, class T>
constexpr int kBlocksBack = Cell::kParts == 3 ? kBlocks<T> : 0;

/// Where a thread works.
template <int kV>
struct Place {
  int64_t segment, chain, channel, row, row_step, first, last;  // positions [first, last) in scan order
  int64_t bias;                                                 // (direction h + head) w + channel
  bool valid;
  __device__ __forceinline__ Place(const DiagonalScanShape& s, const Segments& segments) {
    const int64_t vectors = s.chains() / kV, thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    valid = thread < vectors * segments.count;
    segment = thread / vectors, chain = thread % vectors * kV;
    channel = chain % s.w;
    const int64_t place = chain / s.w, direction = place & 1, head = place / 2 % s.h, image = place / 2 / s.h;
    const int64_t begin = s.begin(image), length = s.length(image);
    first = segment * segments.length;
    last = first + segments.length < length ? first + segments.length : length;
    row_step = (direction == 0 ? 1 : -1) * 2 * s.h;
    row = ((begin + (direction == 0 ? 0 : length - 1)) * s.h + head) * 2 + direction;  // of position 0
    bias = (direction * s.h + head);
  }
};

template <class Cell, class T, int kV>
__device__ __forceinline__ void load_bias(float (&bias)[3][kV], const T* from, int64_t which, int64_t w,
                                          int64_t channel) {
#pragma unroll
  for (int i = 0; i < Cell::kParts; ++i)
#pragma unroll
    for (int j = 0; j < kV; ++j)
      bias[i][j] = from == nullptr ? 0.0f : to_acc(from[(which * Cell::kParts + i) * w + channel + j]);
}

template <class Cell, class T, int kV>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    diagonal_scan_fwd_chains(DiagonalScan<T> a, Segments segments, SegmentSums sums, bool sums_only) {
  constexpr bool kFast = sizeof(T) == 2;
  const Place<kV> at(a.s, segments);
  if (!at.valid || (sums_only && at.segment + 1 == segments.count)) return;
  const int64_t chains = a.s.chains();
  float bias[3][kV], h[kV] = {}, product[kV];
  load_bias<Cell>(bias, a.bias, at.bias, a.s.w, at.channel);
#pragma unroll
  for (int j = 0; j < kV; ++j) product[j] = 1;
  if (!sums_only)
    for (int64_t k = 0; k < at.segment; ++k)
#pragma unroll
      for (int j = 0; j < kV; ++j)
        h[j] = sums.product[k * chains + at.chain + j] * h[j] + sums.state[k * chains + at.chain + j];
  for (int64_t p = at.first; p < at.last; p += kSteps) {
    Pack<T, kV> in[kSteps][Cell::kParts];
#pragma unroll
    for (int n = 0; n < kSteps; ++n)
      if (p + n < at.last)
#pragma unroll
        for (int i = 0; i < Cell::kParts; ++i)
          in[n][i] = load_pack<kV>(a.part[i] + (at.row + (p + n) * at.row_step) * a.stride + at.channel);
#pragma unroll
    for (int n = 0; n < kSteps; ++n)
      if (p + n < at.last) {
#pragma unroll
        for (int j = 0; j < kV; ++j) {
          float v[3];
#pragma unroll
          for (int i = 0; i < Cell::kParts; ++i) v[i] = to_acc(in[n][i].v[j]) + bias[i][j];
          product[j] *= Cell::template step<kFast>(v, h[j]);
        }
        if (!sums_only) store_acc(a.y + (at.row + (p + n) * at.row_step) * a.s.w + at.channel, h);
      }
  }
  if (sums_only)
#pragma unroll
    for (int j = 0; j < kV; ++j) {
      sums.product[at.segment * chains + at.chain + j] = product[j];
      sums.state[at.segment * chains + at.chain + j] = h[j];
    }
}

/// d = a_{t+1} dh_{t+1} comes in, a_t dh_t goes on: the same recurrence from the other end.
template <class Cell, class T, int kV>
__global__ void __launch_bounds__(kThreads, kBlocksBack<Cell, T>)
    diagonal_scan_bwd_chains(DiagonalScanBackward<T> a, Segments segments, SegmentSums sums, bool sums_only) {
  constexpr bool kFast = sizeof(T) == 2;
  const Place<kV> at(a.s, segments);
  if (!at.valid || (sums_only && at.segment == 0)) return;
  const int64_t chains = a.s.chains();
  float bias[3][kV], d[kV] = {}, product[kV];
  load_bias<Cell>(bias, a.bias, at.bias, a.s.w, at.channel);
#pragma unroll
  for (int j = 0; j < kV; ++j) product[j] = 1;
  if (!sums_only)
    for (int64_t k = segments.count - 1; k > at.segment; --k)
#pragma unroll
      for (int j = 0; j < kV; ++j)
        d[j] = sums.product[k * chains + at.chain + j] * d[j] + sums.state[k * chains + at.chain + j];
  constexpr int kBack = kStepsBack<Cell>;
  constexpr int kGy = Cell::kParts, kY = kGy + 1;  // beside the parts
  Pack<T, kV> in[kBack][kY + 1], next[kBack][kY + 1];
  auto fetch = [&](Pack<T, kV>(&to)[kBack][kY + 1], int64_t end) {
#pragma unroll
    for (int n = 0; n < kBack; ++n) {
      const int64_t p = end - 1 - n, row = at.row + p * at.row_step;
      if (p < at.first) continue;
#pragma unroll
      for (int i = 0; i < Cell::kParts; ++i)
        to[n][i] = load_pack<kV>(a.part[i] + row * a.stride + at.channel);
      to[n][kGy] = load_pack<kV>(a.gy + row * a.s.w + at.channel);
      if (p > 0 && !sums_only) to[n][kY] = load_pack<kV>(a.y + (row - at.row_step) * a.s.w + at.channel);
    }
  };
  fetch(in, at.last);
  for (int64_t end = at.last; end > at.first; end -= kBack) {
    fetch(next, end - kBack);
#pragma unroll
    for (int n = 0; n < kBack; ++n) {
      const int64_t p = end - 1 - n;
      if (p >= at.first) {
        float g[3][kV];
#pragma unroll
        for (int j = 0; j < kV; ++j) {
          float v[3], g_of[3], keep;
#pragma unroll
          for (int i = 0; i < Cell::kParts; ++i) v[i] = to_acc(in[n][i].v[j]) + bias[i][j];
          const float dh = to_acc(in[n][kGy].v[j]) + d[j];
          const float before = p > 0 && !sums_only ? to_acc(in[n][kY].v[j]) : 0.0f;
          Cell::template backward<kFast>(v, before, dh, keep, g_of);
          d[j] = keep * dh;
          product[j] *= keep;
#pragma unroll
          for (int i = 0; i < Cell::kParts; ++i) g[i][j] = g_of[i];
        }
        if (!sums_only)
#pragma unroll
          for (int i = 0; i < Cell::kParts; ++i)
            store_acc(a.g_part[i] + (at.row + p * at.row_step) * a.stride + at.channel, g[i]);
      }
    }
#pragma unroll
    for (int n = 0; n < kBack; ++n)
#pragma unroll
      for (int i = 0; i <= kY; ++i) in[n][i] = next[n][i];
  }
  if (sums_only)
#pragma unroll
    for (int j = 0; j < kV; ++j) {
      sums.product[at.segment * chains + at.chain + j] = product[j];
      sums.state[at.segment * chains + at.chain + j] = d[j];
    }
}

Segments segments_of(const DiagonalScanShape& s) {
  return cut(s.t, s.chains() / 2, int64_t(device_limits().sm_count) * kThreadsWanted, 8);
}

/// Two channels a thread where all rows allow it.
template <class T, class... Pointers>
bool in_pairs(const DiagonalScanShape& s, int64_t stride, const Pointers*... pointers) {
  return s.w % 2 == 0 && stride % 2 == 0 &&
         ((reinterpret_cast<uintptr_t>(pointers) % (2 * sizeof(T)) == 0) && ...);
}

/// Runs kernel<cell, pairs> once, or twice when there are segments.
template <class Args>
void launch(const Args& a, bool pairs, float* workspace, void* stream, const char* name,
            void (*one)(Args, Segments, SegmentSums, bool), void (*two)(Args, Segments, SegmentSums, bool)) {
  const Segments segments = segments_of(a.s);
  const int64_t chains = a.s.chains(), threads = segments.count * chains / (pairs ? 2 : 1);
  const unsigned blocks = grid_of_blocks(div_up<int64_t>(threads, kThreads));
  const SegmentSums sums{workspace, workspace + segments.count * chains};
  auto kernel = pairs ? two : one;
  for (bool sums_only : {true, false}) {
    if (sums_only && segments.count == 1) continue;
    kernel<<<blocks, kThreads, 0, as_stream(stream)>>>(a, segments, sums, sums_only);
    check_launch(name, stream);
  }
}

template <class Cell, class T>
void forward(const DiagonalScan<T>& a, float* workspace, void* stream) {
  launch(a, in_pairs<T>(a.s, a.stride, a.part[0], a.part[1], a.y), workspace, stream,
         "diagonal_scan_fwd_chains", diagonal_scan_fwd_chains<Cell, T, 1>,
         diagonal_scan_fwd_chains<Cell, T, 2>);
}
template <class Cell, class T>
void backward(const DiagonalScanBackward<T>& a, float* workspace, void* stream) {
  launch(a, in_pairs<T>(a.s, a.stride, a.part[0], a.part[1], a.y, a.gy, a.g_part[0], a.g_part[1]), workspace,
         stream, "diagonal_scan_bwd_chains", diagonal_scan_bwd_chains<Cell, T, 1>,
         diagonal_scan_bwd_chains<Cell, T, 2>);
}

}  // namespace

int64_t diagonal_scan_workspace(const DiagonalScanShape& s) {
  const Segments segments = segments_of(s);
  return segments.count > 1 ? 2 * segments.count * s.chains() : 0;
}

template <class T>
void diagonal_scan_fwd(const DiagonalScan<T>& a, float* workspace, void* stream) {
  if (a.cell == Cell::plain)
    forward<PlainCell>(a, workspace, stream);
  else if (a.cell == Cell::min_gru)
    forward<MinGruCell>(a, workspace, stream);
  else
    forward<MinLstmCell>(a, workspace, stream);
}
template <class T>
void diagonal_scan_bwd(const DiagonalScanBackward<T>& a, float* workspace, void* stream) {
  if (a.cell == Cell::plain)
    backward<PlainCell>(a, workspace, stream);
  else if (a.cell == Cell::min_gru)
    backward<MinGruCell>(a, workspace, stream);
  else
    backward<MinLstmCell>(a, workspace, stream);
}

template void diagonal_scan_fwd(const DiagonalScan<float>&, float*, void*);
template void diagonal_scan_fwd(const DiagonalScan<bf16>&, float*, void*);
template void diagonal_scan_bwd(const DiagonalScanBackward<float>&, float*, void*);
template void diagonal_scan_bwd(const DiagonalScanBackward<bf16>&, float*, void*);

}  // namespace occam::kernels
