#pragma once
// `bench ladder NAME`: every step of a ladder checked, then timed.
#include <functional>
#include <string>
#include <vector>

#include "apps/bench/timing.h"
#include "core/io/json.h"

namespace occam {

/// Ops that have a ladder in this build, which needs CUDA.
std::vector<std::string> ladder_names();

/// Gives `keep` a line a step, as soon as it is timed: ladder, step, idea, shape, ms, gflop_s, gb_s,
/// floor_ms, share_of_roofline, error (the largest difference from the reference over what is allowed; below
/// 1). Throws Error{usage} without such a ladder or a GPU, and Error{internal} naming the step whose result
/// is wrong.
void climb_ladder(const std::string& op, Device device, const TimingOptions& options,
                  const std::function<void(const Json&)>& keep);

}  // namespace occam
