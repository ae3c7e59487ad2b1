#pragma once
#include <string>

#include "nn/plan.h"

namespace occam {

/// A table of the plan: tree, shape of each module's output, parameters, multiply-adds and bytes of the f32
/// weights, each with everything below it. Modules deeper than `max_depth` (root 0) are left out.
std::string summary(const Plan& plan, int max_depth = 8);

}  // namespace occam
