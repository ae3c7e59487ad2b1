#pragma once
// Between the two .cu files.
#include "ops/selective_scan/kernel.h"

namespace occam::kernels {

/// What a walk along the tokens writes.
enum class ScanPass : int { sums, starts, outputs };

/// The forward walk: y, or with `starts` [tiles][b,2,c,n] the states before every tile instead.
template <class T>
void selective_scan_states(const SelectiveScan<T>& a, float* room, float* starts, void* stream);

}  // namespace occam::kernels
