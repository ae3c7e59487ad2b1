#pragma once
#include <cstdint>

#include "ops/attention_stats/keys.h"

namespace occam::kernels {

/// Where the rows are on the t tokens: prefix tokens, then a grid_h x grid_w grid.
struct MapLayout {
  int64_t t = 0, prefix = 0, grid_h = 0, grid_w = 0;
  bool order = true;
};

/// Rows of scores scale q k^T from qkv [b,t,3,h,d], or given maps [b,h,t,t] when `maps` is set.
template <class T>
struct MapSource {
  int64_t b = 0, h = 0, d = 0;
  double scale = 1;
  const T* qkv = nullptr;
  const T* maps = nullptr;
};

/// Most tokens a row may have: its f64 entries, padded to a power of two, must fit into shared memory.
inline constexpr int64_t kMostTokens = 16384;
/// Most tokens of attention_moments, which keeps three rows.
inline constexpr int64_t kMostMomentTokens = 8192;

/// f64 numbers of scratch that attention_stats needs.
int64_t attention_stats_scratch(int64_t maps, const MapLayout& layout);
/// out [b,h,3,kAttentionStatCount]
template <class T>
void attention_stats(const MapSource<T>& source, const MapLayout& layout, double* scratch, float* out,
                     void* stream);
/// out [2,h,t,t]: sums over the batch of the map and of its squares.
template <class T>
void attention_moments(const MapSource<T>& source, int64_t t, float* out, void* stream);

}  // namespace occam::kernels
