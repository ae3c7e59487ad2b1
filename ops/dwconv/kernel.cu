// Depthwise convolution with channels innermost: a lane owns two neighbouring channels, a warp 64, so that
// every load of a token is coalesced and no value crosses lanes. A block keeps the kernel's weights of its
// channels in registers and goes from tile to tile of the grid, the next one on its way to shared memory
// meanwhile. A warp walks along a row of the tile with one accumulator for each of the K outputs that a
// column of inputs reaches: K loads from shared memory and K^2 multiply-adds a column and channel. The sum
// over the patches, for the prefix tokens, is taken on the way. Weight gradients are the same walk with K^2
// accumulators; blocks leave partial sums, and a second kernel adds these in order. Kernels that are
// not square of side 3, 5 or 7, and odd channel counts, take general forms.
#include <algorithm>

#include "ops/dwconv/any.cuh"
#include "ops/dwconv/tiles.cuh"

namespace occam::kernels {

namespace {

/// Sum over `rows` rows of a matrix [rows, columns], by a block of kLanes columns; all in warp 0's lanes.
__device__ float sum_rows(const float* matrix, int64_t rows, int64_t columns, int64_t column, bool inside) {
  __shared__ float parts[kReduceWarps][kLanes];
  float sum = 0;
  if (inside)
    for (int64_t n = threadIdx.y; n < rows; n += kReduceWarps) sum += matrix[n * columns + column];
  __syncthreads();
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (int k = 0; k < kReduceWarps; ++k) sum += parts[k][threadIdx.x];
  return sum;
}

/// mean [b, c] from the units' sums, and the prefix tokens. A block: one image and 32 channels.
template <class T>
__global__ void __launch_bounds__(kLanes* kReduceWarps)
    dwconv_fwd_prefix(DwconvForward<T, float> a, const float* sums, int64_t units) {
  const DwconvShape& s = a.s;
  const int64_t image = blockIdx.x, channel = int64_t(blockIdx.y) * kLanes + threadIdx.x;
  const bool inside = channel < s.c;
  const float sum = sum_rows(sums + image * units * s.c, units, s.c, channel, inside);
  if (!inside || threadIdx.y != 0) return;
  const float mean = sum / float(s.patches() > 0 ? s.patches() : 1);
  a.mean[image * s.c + channel] = mean;
  const float rest = to_acc(a.bias[channel]) + to_acc(a.prefix_w[s.c + channel]) * mean;
  for (int64_t p = 0; p < s.prefix; ++p) {
    const int64_t at = (image * s.tokens() + p) * s.c + channel;
    a.y[at] = from_acc<T>(rest + to_acc(a.prefix_w[channel]) * to_acc(a.x[at]));
  }
}

/// gx of the prefix tokens, and what every patch gets from them through the mean: to_patches [b, c]; their
/// share of the gradients of bias and prefix weights: parts [b, 3, c].
template <class T>
__global__ void dwconv_bwd_prefix(DwconvBackward<T, float> a, float* to_patches, float* parts) {
  const DwconvShape& s = a.s;
  OCCAM_GRID_LOOP(n, s.b * s.c) {
    const int64_t image = n / s.c, channel = n % s.c, first = image * s.tokens() * s.c + channel;
    float sum = 0, product = 0;
    for (int64_t p = 0; p < s.prefix; ++p) {
      const float g = to_acc(a.gy[first + p * s.c]);
      sum += g;
      if (a.gx != nullptr) a.gx[first + p * s.c] = from_acc<T>(to_acc(a.prefix_w[channel]) * g);
      if (a.x != nullptr) product += g * to_acc(a.x[first + p * s.c]);
    }
    to_patches[n] = sum * to_acc(a.prefix_w[s.c + channel]) / float(s.patches() > 0 ? s.patches() : 1);
    if (a.x == nullptr) continue;
    parts[image * 3 * s.c + channel] = sum;
    parts[(image * 3 + 1) * s.c + channel] = product;
    parts[(image * 3 + 2) * s.c + channel] = sum * a.mean[n];
  }
}

/// Adds chunks, and images for the prefix: one column of [taps + 1 + 2, c] a lane.
__global__ void __launch_bounds__(kLanes* kReduceWarps)
    dwconv_bwd_reduce(DwconvShape s, const float* partial, int64_t chunks, const float* parts, float* gw,
                      float* gprefix, float* gbias) {
  const int64_t kernel = s.taps() * s.c, n = int64_t(blockIdx.x) * kLanes + threadIdx.x;
  const bool of_chunks = n < kernel + s.c, of_images = n >= kernel && n < kernel + 3 * s.c;
  const float chunk_sum = sum_rows(partial, chunks, kernel + s.c, n, of_chunks);
  const float image_sum = sum_rows(parts, s.b, 3 * s.c, n - kernel, of_images);
  if (threadIdx.y != 0) return;
  if (n < kernel)
    gw[n] = chunk_sum;
  else if (n < kernel + s.c)
    gbias[n - kernel] = chunk_sum + image_sum;
  else if (of_images)
    gprefix[n - kernel - s.c] = image_sum;
}

/// Calls fn<V, K>(): channels a lane takes at a time, and the sides that have their own kernel, else 0.
template <class Fn>
void for_kernel(const DwconvShape& s, bool pairs, Fn&& fn) {
  if (!pairs) return fn.template operator()<1, 0>();
  if (s.kh != s.kw || s.kw < 3 || s.kw > 7) return fn.template operator()<2, 0>();
  if (s.kw == 3) return fn.template operator()<2, 3>();
  if (s.kw == 5) return fn.template operator()<2, 5>();
  fn.template operator()<2, 7>();
}

/// Two channels at a time: whole pairs at addresses that a load of two takes.
template <class... Pointers>
bool in_pairs(const DwconvShape& s, const Pointers*... pointers) {
  return s.c % 2 == 0 && ((reinterpret_cast<uintptr_t>(pointers) % (2 * sizeof(*pointers)) == 0) && ...);
}

template <class T>
Tiles tiles_of(const DwconvShape& s, int64_t bytes) {
  const int64_t halo = s.kw - 1, token = kLanes * 2 * sizeof(T);
  Tiles t;
  t.across = int(div_up<int64_t>(s.gw, kColumns<T>)), t.columns = int(div_up<int64_t>(s.gw, t.across));
  t.seen_columns = t.columns + int(halo);
  const int64_t rows = bytes / (token * t.seen_columns) - halo;
  t.down = int(div_up<int64_t>(s.gh, rows)), t.rows = int(div_up<int64_t>(s.gh, t.down));
  t.seen_rows = t.rows + int(halo);
  return t;
}
/// Narrowest pieces of a row in any form.
int64_t segments_of(const DwconvShape& s) { return div_up<int64_t>(s.gw, kSegment); }

int64_t blocks_of(const DwconvShape& s, int64_t work) {
  const int64_t groups = std::max<int64_t>(1, div_up<int64_t>(s.c, kLanes * 2));
  return std::clamp<int64_t>(int64_t(device_limits().sm_count) * kBlocksOfSm / groups, 1,
                             std::max<int64_t>(work, 1));
}
/// Partial sums that the weight gradient's kernel leaves.
int64_t chunks_of(const DwconvShape& s) { return s.patches() > 0 ? blocks_of(s, s.b * s.gh) : 0; }

/// Returns the pieces of a row that `sums` has.
template <class T>
int64_t convolve(Convolve<T> a, cudaStream_t stream) {
  const DwconvShape& s = a.s;
  if (s.b * s.patches() * s.c == 0) return 0;
  const bool pairs = in_pairs(s, a.from, a.w, a.to, a.bias, a.image_base, a.sums);
  for_kernel(s, pairs, [&]<int V, int K>() {
    const unsigned groups = unsigned(div_up<int64_t>(s.c, kLanes * V));
    if constexpr (K > 0) {
      const Tiles tiles = tiles_of<T>(s, kForwardBytes);
      const int64_t shared = 2 * int64_t(tiles.seen_rows) * tiles.seen_columns * kLanes * 2 * sizeof(T);
      allow_shared(dwconv_tiles<T, K>, "dwconv_tiles", shared);
      const dim3 grid(unsigned(blocks_of(s, s.b * tiles.down * tiles.across)), groups);
      a.segments = tiles.across;
      dwconv_tiles<T, K><<<grid, dim3(kLanes, kTileWarps), size_t(shared), stream>>>(a, tiles);
    } else {
      a.segments = int(segments_of(s));
      const int64_t units = div_up<int64_t>(s.gh * a.segments, kAnyWarps);
      const dim3 grid(grid_of_rows(s.b), unsigned(std::min<int64_t>(units, 65535)), groups);
      dwconv_any<T, V><<<grid, dim3(kLanes, kAnyWarps), 0, stream>>>(a);
    }
    check_launch("dwconv_fwd", stream);
  });
  return a.segments;
}

template <class T>
void weight_gradients(const DwconvBackward<T, float>& a, float* partial, int64_t chunks,
                      cudaStream_t stream) {
  const DwconvShape& s = a.s;
  if (chunks == 0) return;
  for_kernel(s, in_pairs(s, a.x, a.gy), [&]<int V, int K>() {
    const unsigned groups = unsigned(div_up<int64_t>(s.c, kLanes * V));
    if constexpr (K > 0) {
      const Tiles tiles = tiles_of<T>(s, kBackwardBytes<T>);
      const int64_t tokens =
          int64_t(tiles.seen_rows) * tiles.seen_columns + int64_t(tiles.rows) * tiles.columns;
      const int64_t shared = 2 * tokens * kLanes * 2 * sizeof(T);
      allow_shared(dwconv_bwd_tiles<T, K>, "dwconv_bwd_tiles", shared);
      dwconv_bwd_tiles<T, K>
          <<<dim3(unsigned(chunks), groups), dim3(kLanes, kTileWarps), size_t(shared), stream>>>(a, tiles,
                                                                                                 partial);
    } else {
      const dim3 grid(unsigned(chunks), groups, unsigned(s.kh * div_up<int64_t>(s.kw, kStrip) + 1));
      dwconv_bwd_any<T, V><<<grid, dim3(kLanes, kAnyWarps), 0, stream>>>(a, partial);
    }
    check_launch("dwconv_bwd", stream);
  });
}

}  // namespace

int64_t dwconv_scratch(const DwconvShape& s, bool backward) {
  return backward ? s.c * (4 * s.b + chunks_of(s) * (s.taps() + 1)) : s.b * s.gh * segments_of(s) * s.c;
}

template <class T>
void dwconv_fwd(const DwconvForward<T, float>& a, void* stream_handle) {
  const cudaStream_t stream = as_stream(stream_handle);
  const DwconvShape& s = a.s;
  if (s.b == 0 || s.c == 0) return;
  const int64_t segments = convolve(
      Convolve<T>{.s = s, .from = a.x, .w = a.w, .to = a.y, .bias = a.bias, .sums = a.scratch}, stream);
  const dim3 grid(grid_of_rows(s.b), unsigned(div_up<int64_t>(s.c, kLanes)));
  dwconv_fwd_prefix<<<grid, dim3(kLanes, kReduceWarps), 0, stream>>>(a, a.scratch, s.gh * segments);
  check_launch("dwconv_fwd_prefix", stream);
}

template <class T>
void dwconv_bwd(const DwconvBackward<T, float>& a, void* stream_handle) {
  const cudaStream_t stream = as_stream(stream_handle);
  const DwconvShape& s = a.s;
  if (s.c == 0) return;
  float *to_patches = a.scratch, *parts = to_patches + s.b * s.c, *partial = parts + 3 * s.b * s.c;
  if (s.b > 0) {
    constexpr int kThreads = 128;
    dwconv_bwd_prefix<<<grid_for(s.b * s.c, kThreads), kThreads, 0, stream>>>(a, to_patches, parts);
    check_launch("dwconv_bwd_prefix", stream);
  }
  if (a.gx != nullptr)
    convolve(Convolve<T>{.s = s, .from = a.gy, .w = a.w, .to = a.gx, .image_base = to_patches, .flip = true},
             stream);
  if (a.gw == nullptr) return;
  const int64_t chunks = s.b > 0 ? chunks_of(s) : 0, columns = (s.taps() + 3) * s.c;
  weight_gradients(a, partial, chunks, stream);
  dwconv_bwd_reduce<<<unsigned(div_up<int64_t>(columns, kLanes)), dim3(kLanes, kReduceWarps), 0, stream>>>(
      s, partial, chunks, parts, a.gw, a.gprefix, a.gbias);
  check_launch("dwconv_bwd_reduce", stream);
}

template void dwconv_fwd(const DwconvForward<float, float>&, void*);
template void dwconv_fwd(const DwconvForward<bf16, float>&, void*);
template void dwconv_bwd(const DwconvBackward<float, float>&, void*);
template void dwconv_bwd(const DwconvBackward<bf16, float>&, void*);

}  // namespace occam::kernels
