#pragma once
// What the kernels of attention_stats hand to each other. Rows are measured first, then means are taken.
#include <cstdint>

#include "core/cuda/launch.h"
#include "core/half.h"
#include "ops/attention_stats/kernel.h"

namespace occam::kernels {

/// The record of a row: its statistics [kAttentionStatCount], but
///   sink_mass_max   the row's largest entry, for row 0. Marked (negative, or -0) when the counts of this row
///                   are to be found in f64
///   attention_distance   kNoMass: to be found in f64 too, with the masses in windows
///   mass_support         kNoSupport: to be found in f64 too
///   gini, top_mass_1     until the row is sorted: relative error of its probabilities, and the base of the
///                        weights 2^(score - base)
struct Records {
  int64_t t = 0, parts = 0;   // a map's rows are the work of `parts` blocks
  float* values = nullptr;    // [maps, t, kAttentionStatCount]
  double* columns = nullptr;  // [maps, parts, 2, t]: sums of a column over prefix rows and over patch rows
};

inline constexpr float kNoMass = -1, kNoSupport = -1;
#ifdef __CUDACC__
__device__ __forceinline__ float marked(float x) { return -fabsf(x); }
__device__ __forceinline__ bool is_marked(float x) { return __float_as_int(x) < 0; }
#endif

/// Streaming statistics of bf16 rows on tensor cores (kernel_streaming.cu). `takes`: does it serve this
/// source? Leaves undecided rows.
bool streaming_takes(const MapSource<bf16>& source, const MapLayout& layout);
int64_t streaming_parts(int64_t t);
void streaming_records(const MapSource<bf16>& source, const MapLayout& layout, const Records& records,
                       void* stream);

/// The same for short rows on Hopper (kernel_short.cu). Where nothing is to be sorted it decides rows and
/// writes the means to `out`, else it leaves records, of one part.
bool short_takes(const MapSource<bf16>& source, const MapLayout& layout);
void short_records(const MapSource<bf16>& source, const MapLayout& layout, const Records& records, float* out,
                   void* stream);

/// What needs a row in order (kernel_order.cu, at most 264 tokens), into the records that one of the above
/// left; decides rows.
bool order_takes(const MapSource<bf16>& source, const MapLayout& layout);
void order_records(const MapSource<bf16>& source, const MapLayout& layout, const Records& records,
                   void* stream);

/// The same for at most 2048 tokens (kernel_order_long.cu); leaves undecided rows.
bool order_long_takes(const MapSource<bf16>& source, const MapLayout& layout);
void order_long_records(const MapSource<bf16>& source, const MapLayout& layout, const Records& records,
                        void* stream);

}  // namespace occam::kernels
