#pragma once
// What the kernels of attention_stats hand to each other. Rows are measured first, then means are taken.
#include <cstdint>

#include "core/half.h"
#include "ops/attention_stats/kernel.h"

namespace occam::kernels {

struct Records {
  int64_t t = 0, parts = 0;   // a map's rows are the work of `parts` blocks
  float* values = nullptr;    // [maps, t, kAttentionStatCount]; sink_mass_max: the row's largest, for row 0
  double* columns = nullptr;  // [maps, parts, 2, t]: sums of a column over prefix rows and over patch rows
};

/// In the place of sink_mass_max: the counts of this row are to be found in f64.
inline constexpr float kUndecided = -1;

/// bf16 rows on tensor cores (kernel_mma.cu). `takes`: does it serve this source? Leaves undecided rows.
bool mma_takes(const MapSource<bf16>& source, const MapLayout& layout);
int64_t mma_parts(int64_t t);
void mma_records(const MapSource<bf16>& source, const MapLayout& layout, const Records& records,
                 void* stream);

}  // namespace occam::kernels
