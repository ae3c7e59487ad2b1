#pragma once
// What attention_stats measures, in the order of its last axis. Plain constants: kernels include this too.

namespace occam {

enum AttentionStat : int {
  kThresholdShare,
  kThresholdShareUniform,
  kEntropy,
  kEffectiveSupport,
  kHoyer,
  kGini,
  kTopMass1,
  kTopMass5,
  kTopMass10,
  kTopMassTenth,
  kMassSupport,
  kAttentionDistance,
  kWindowMass3,
  kWindowMass5,
  kSinkMassCls,
  kSinkMassMax,
  kAttentionStatCount
};

/// Relative width of a tie: an entry this close below a threshold counts as equal to it, and a cumulative
/// mass this close below 0.9 has reached it. Far above the rounding of f64 and far below what two different
/// entries of a real map show, so counts do not depend on the order of additions.
inline constexpr double kTie = 1e-9;
inline constexpr double kShareThreshold = 1e-3;
inline constexpr double kSupportMass = 0.9;

}  // namespace occam
