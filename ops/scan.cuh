#pragma once
// Scans of channels with states on a GPU: a block has 64 channels of one sequence, direction and segment; 4
// lanes share a channel and have some of its states each. Tokens come in tiles through shared memory, in scan
// order.
#include "core/cuda/launch.h"
#include "ops/scan.h"

namespace occam::kernels {

using namespace cuda;

constexpr int kChannels = 64, kLanes = 4, kThreads = kChannels * kLanes;

inline int64_t channel_groups(const ChannelScanShape& s) { return div_up<int64_t>(s.c, kChannels); }
/// Whole tiles long.
inline Segments segments_of(const ChannelScanShape& s, int tile) {
  return cut(s.t, s.b * 2 * channel_groups(s), 3 * int64_t(device_limits().sm_count), tile);
}
inline unsigned blocks_of(const ChannelScanShape& s, const Segments& segments) {
  return grid_of_blocks(s.b * segments.count * 2 * channel_groups(s));
}

/// Where a thread works.
struct Spot {
  int64_t image, begin;                         // sequence, and its first row
  int direction, segment, length, first, last;  // positions [first, last) of `length` in scan order
  int64_t channel, chain, part;                 // chain: of [b,2,c]; part: c times that of [b,segments,2]
  int lane, local;                              // of the 4, and the channel within the block
  bool valid;
  __device__ __forceinline__ Spot(const ChannelScanShape& s, const Segments& segments) {
    const int64_t groups = (s.c + kChannels - 1) / kChannels, group = blockIdx.x % groups;
    direction = int(blockIdx.x / groups % 2);
    segment = int(blockIdx.x / groups / 2 % segments.count);
    image = blockIdx.x / groups / 2 / segments.count;
    begin = s.begin(image), length = int(s.length(image));
    first = int(segment * segments.length), last = int(min(int64_t(length), first + segments.length));
    lane = int(threadIdx.x) % kLanes, local = int(threadIdx.x) / kLanes;
    channel = group * kChannels + local;
    valid = channel < s.c;
    chain = (image * 2 + direction) * s.c + channel;
    part = ((image * segments.count + segment) * 2 + direction) * s.c;
  }
  /// Row of the token that a walk from the first one on, or from the last one back, meets first.
  __device__ __forceinline__ int64_t edge(bool back) const { return begin + (back ? length - 1 : 0); }
};

/// Sums of four tokens' values over the four lanes of a channel; lane i keeps that of token i.
__device__ __forceinline__ float sum_over_lanes(const float (&y)[4], int lane) {
  const bool upper = lane & 2, odd = lane & 1;
  float keep0 = upper ? y[2] : y[0], keep1 = upper ? y[3] : y[1];
  keep0 += __shfl_xor_sync(0xffffffffu, upper ? y[0] : y[2], 2);
  keep1 += __shfl_xor_sync(0xffffffffu, upper ? y[1] : y[3], 2);
  return (odd ? keep1 : keep0) + __shfl_xor_sync(0xffffffffu, odd ? keep0 : keep1, 1);
}

}  // namespace occam::kernels
