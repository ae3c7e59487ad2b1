#pragma once
// `bench ladder NAME`: every step of a ladder checked, then timed.
#include <string>
#include <vector>

#include "apps/bench/timing.h"
#include "core/io/json.h"

namespace occam {

/// Ops that have a ladder in this build, which needs CUDA.
std::vector<std::string> ladder_names();

/// A line a step: ladder, step, idea, shape, ms, gflop_s, gb_s, floor_ms, share_of_roofline, error (the
/// largest difference from the reference over what is allowed; below 1). Throws Error{usage} without such a
/// ladder or a GPU, and Error{internal} naming the step whose result is wrong.
std::vector<Json> climb_ladder(const std::string& op, Device device, const TimingOptions& options);

}  // namespace occam
