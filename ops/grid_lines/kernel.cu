// A block takes a row: a step of a line, or a token. Threads take packs of its numbers, or one at a time.
#include "ops/grid_lines/kernel.h"

#include "core/cuda/launch.h"
#include "core/cuda/vec.cuh"

namespace occam::kernels {

using namespace cuda;

namespace {

template <int kWide, class T>
__global__ void lines_of_tokens_kernel(const T* tokens, T* lines, LinesShape s, float scale) {
  const int64_t length = s.length(), of_all = int64_t(blockIdx.x) / length,
                step = int64_t(blockIdx.x) % length;
  const int64_t image = of_all / s.lines(), line = of_all % s.lines();
  const unsigned q = unsigned(s.q), h = unsigned(s.h), width = unsigned(s.step_width());
  const float factor = step < s.prefix ? scale : 1;
  for (unsigned e = threadIdx.x * kWide; e < width; e += blockDim.x * kWide) {
    const unsigned i = e % q, head = e / q % h, set = e / q / h;
    const unsigned at = s.shared ? head * q + i : (head * s.sets + set) * q + i;
    float v[kWide];
    load_acc(tokens + (image * s.tokens() + s.token(int(set), line, step)) * s.token_width() + at, v);
#pragma unroll
    for (int k = 0; k < kWide; ++k) v[k] *= factor;
    store_acc(lines + int64_t(blockIdx.x) * width + e, v);
  }
}

template <int kWide, class T>
__global__ void tokens_of_lines_kernel(const T* lines, T* tokens, LinesShape s, float scale) {
  const int64_t image = int64_t(blockIdx.x) / s.tokens(), token = int64_t(blockIdx.x) % s.tokens();
  const int64_t first = image * s.lines() * s.length();
  const unsigned q = unsigned(s.q), h = unsigned(s.h), sets = unsigned(s.sets),
                 width = unsigned(s.token_width());
  for (unsigned e = threadIdx.x * kWide; e < width; e += blockDim.x * kWide) {
    const unsigned i = e % q, head = s.shared ? e / q : e / q / sets, of = s.shared ? 0 : e / q % sets;
    float sum[kWide] = {}, v[kWide];
    for (unsigned set = of; set < (s.shared ? sets : of + 1); ++set) {
      const T* from = lines + first * s.step_width() + (set * h + head) * q + i;
      const bool before = token < s.prefix;
      const int64_t row = before ? token : s.row(int(set), token - s.prefix), count = before ? s.lines() : 1;
#pragma unroll 8
      for (int64_t line = 0; line < count; ++line) {
        load_acc(from + (row + line * s.length()) * s.step_width(), v);
#pragma unroll
        for (int k = 0; k < kWide; ++k) sum[k] += v[k];
      }
    }
    const float factor = token < s.prefix ? scale : 1;
#pragma unroll
    for (int k = 0; k < kWide; ++k) sum[k] *= factor;
    store_acc(tokens + int64_t(blockIdx.x) * width + e, sum);
  }
}

/// Calls launch(packs): whether rows and addresses allow packs.
template <class T>
bool in_packs(const LinesShape& s, const T* from, const T* to) {
  return s.q % kPack<T> == 0 && aligned16(from, to);
}
unsigned threads_for(int64_t items) {
  return unsigned(std::clamp<int64_t>(round_up<int64_t>(items, 32), 32, 256));
}

}  // namespace

template <class T>
void lines_of_tokens(const T* tokens, T* lines, const LinesShape& s, float scale, void* stream) {
  const bool packs = in_packs(s, tokens, lines);
  auto* kernel = packs ? lines_of_tokens_kernel<kPack<T>, T> : lines_of_tokens_kernel<1, T>;
  kernel<<<grid_of_blocks(s.b * s.lines() * s.length()), threads_for(s.step_width() / (packs ? kPack<T> : 1)),
           0, as_stream(stream)>>>(tokens, lines, s, scale);
  check_launch("lines_of_tokens", stream);
}

template <class T>
void tokens_of_lines(const T* lines, T* tokens, const LinesShape& s, float scale, void* stream) {
  const bool packs = in_packs(s, lines, tokens);
  auto* kernel = packs ? tokens_of_lines_kernel<kPack<T>, T> : tokens_of_lines_kernel<1, T>;
  kernel<<<grid_of_blocks(s.b * s.tokens()), threads_for(s.token_width() / (packs ? kPack<T> : 1)), 0,
           as_stream(stream)>>>(lines, tokens, s, scale);
  check_launch("tokens_of_lines", stream);
}

template void lines_of_tokens(const float*, float*, const LinesShape&, float, void*);
template void lines_of_tokens(const bf16*, bf16*, const LinesShape&, float, void*);
template void tokens_of_lines(const float*, float*, const LinesShape&, float, void*);
template void tokens_of_lines(const bf16*, bf16*, const LinesShape&, float, void*);

}  // namespace occam::kernels
