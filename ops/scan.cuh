#pragma once
// Scans of channels with states on a GPU: a block has 64 channels of one sequence, direction and segment, in
// scan order. A channel has a thread, or neighbouring lanes with some of its states each.
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "ops/scan.h"

namespace occam::kernels {

using namespace cuda;

constexpr int kChannels = 64, kLanes = 4, kThreads = kChannels * kLanes;

inline int64_t channel_groups(const ChannelScanShape& s) { return div_up<int64_t>(s.c, kChannels); }
/// Whole tiles long; `at_once` blocks run on a multiprocessor.
inline Segments segments_of(const ChannelScanShape& s, int tile, int at_once = 3) {
  return cut(s.t, s.b * 2 * channel_groups(s), at_once * int64_t(device_limits().sm_count), tile);
}
inline unsigned blocks_of(const ChannelScanShape& s, const Segments& segments) {
  return grid_of_blocks(s.b * segments.count * 2 * channel_groups(s));
}

/// Where a thread works.
struct Spot {
  int64_t image, begin;                         // sequence, and its first row
  int direction, segment, length, first, last;  // positions [first, last) of `length` in scan order
  int64_t channel, chain, part;                 // chain: of [b,2,c]; part: c times that of [b,segments,2]
  int lane, local;                              // of the channel's, and the channel within the block
  bool valid;
  __device__ __forceinline__ Spot(const ChannelScanShape& s, const Segments& segments, int lanes = kLanes) {
    const int64_t groups = (s.c + kChannels - 1) / kChannels, group = blockIdx.x % groups;
    direction = int(blockIdx.x / groups % 2);
    segment = int(blockIdx.x / groups / 2 % segments.count);
    image = blockIdx.x / groups / 2 / segments.count;
    begin = s.begin(image), length = int(s.length(image));
    first = int(segment * segments.length), last = int(min(int64_t(length), first + segments.length));
    lane = int(threadIdx.x) % lanes, local = int(threadIdx.x) / lanes;
    channel = group * kChannels + local;
    valid = channel < s.c;
    chain = (image * 2 + direction) * s.c + channel;
    part = ((image * segments.count + segment) * 2 + direction) * s.c;
  }
  /// Row of the token that a walk from the first one on, or from the last one back, meets first.
  __device__ __forceinline__ int64_t edge(bool back) const { return begin + (back ? length - 1 : 0); }
  /// The channel, or one that there is.
  __device__ __forceinline__ int64_t some_channel(const ChannelScanShape& s) const {
    return valid ? channel : s.c - 1;
  }
};

/// A channel's elements of positions first, first + 1, ... of a tensor, kTokens of them under way while as
/// many are computed with; zeros from `last` on.
template <class T, int kTokens>
class Ahead {
 public:
  /// `channel`: the element of position 0, `step` elements before that of position 1.
  __device__ __forceinline__ Ahead(const T* channel, int64_t step, const Spot& at)
      : next_(channel + at.first * step), step_(step), left_(at.last - at.first) {
    fetch();
  }
  /// Those of the next kTokens positions.
  __device__ __forceinline__ void take(float (&v)[kTokens]) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) v[i] = to_acc(ahead_[i]);
    fetch();
  }

 private:
  __device__ __forceinline__ void fetch() {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) ahead_[i] = i < left_ ? next_[i * step_] : from_acc<T>(0.0f);
    next_ += kTokens * step_, left_ -= kTokens;
  }
  const T* next_;
  int64_t step_;
  int left_;
  T ahead_[kTokens];
};

}  // namespace occam::kernels
