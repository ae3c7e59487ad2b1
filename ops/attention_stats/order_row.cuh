#pragma once
// What needs a row in order, from its weights in the registers of kLanes lanes, kN a lane in any order and
// zeros for those that do not exist.
#include "ops/attention_stats/lane_sort.cuh"
#include "ops/attention_stats/streaming.cuh"

namespace occam::kernels::streaming {

template <int kLanes>
struct OrderedRow {
  float gini, top1, top5, top10, top_tenth, mass_support;  // in the first lane
  bool undecided;                                          // mass_support is to be found in f64
  /// Sorts v; `error`: how far a weight's share may be off, relative to itself.
  template <int kN>
  __device__ __forceinline__ OrderedRow(float (&v)[kN], int t, float error) {
    static_assert(kN >= 10, "the first lane holds the ten largest");
    const int lane = int(threadIdx.x) % kLanes;
    sort_lanes<kLanes>(v);
    float own = 0, ranked = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) own += v[i], ranked = fmaf(v[i], float(i) + 0.5f, ranked);
    ranked = warp_reduce<kLanes>(fmaf(own, float(lane * kN), ranked), SumOp{});
    float mass = 0;  // of the entries so far
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
      const float left = __shfl_up_sync(0xffffffffu, step == 1 ? own : mass + own, unsigned(step), kLanes);
      if (lane >= step) mass += left;
    }
    const float sum = warp_reduce<kLanes>(own, SumOp{}), inverse = 1 / sum;
    // A share of 0.9 changes by 2 * 0.9 * 0.1 of what its entries do; then the additions.
    const float relative = (0.2f * error + float(kN + 12) * kUnitF32) / float(kSupportMass);
    const float middle = Counter::middle_of(relative);
    Counter below((middle - 0.5f) * inverse * float(1 / kSupportMass));
    const int tenth = (t + 9) / 10 - 1 - lane * kN;
    float decided = 0, fifth = 0, last = 0;
    top10 = 0;
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      mass += v[k];
      below.add(mass, middle, decided);
      if (k == 4) fifth = mass;
      if (k == 9) top10 = mass;
      if (k == tenth) last = mass;
    }
    const float count = warp_reduce<kLanes>(below.count, SumOp{});
    undecided = count != warp_reduce<kLanes>(decided, SumOp{});
    gini = 1 - 2 * ranked * inverse / float(t);
    top1 = v[0] * inverse, top5 = fifth * inverse, top10 *= inverse;
    top_tenth = warp_reduce<kLanes>(last, SumOp{}) * inverse;
    mass_support = (count + 1) / float(t);
  }
  __device__ __forceinline__ void store(float* record) const {
    record[kGini] = gini, record[kTopMass1] = top1, record[kTopMass5] = top5, record[kTopMass10] = top10;
    record[kTopMassTenth] = top_tenth, record[kMassSupport] = undecided ? kNoSupport : mass_support;
  }
};

}  // namespace occam::kernels::streaming
