#pragma once
// Between the .cu files.
#include "ops/selective_scan/kernel.h"

namespace occam::kernels {

/// The forward walk: y, or with `starts` [tiles][b,2,c,n] the states before every tile of tokens instead.
/// `room`: selective_scan_fwd_workspace.
template <class T>
void selective_scan_states(const SelectiveScan<T>& a, float* room, float* starts, int tile, void* stream);

/// What segments leave for each other: sums of dt [segment][b,2,c], end states from 0 [segment][b,2,c,n].
struct Sums {
  float *dt, *state;
};

/// What backward writes for later sums: gradients of B and C by block of channels [blocks][b,t,2][2 n],
/// those of the parameters by image and segment.
struct BackwardParts {
  float *vectors, *a, *skip;
};

/// A pass of backward for up to 16 states, and the segments it takes.
Segments selective_scan_chain_segments(const ChannelScanShape& s);
template <class T>
void selective_scan_bwd_chains_pass(const SelectiveScanBackward<T, float>& g, const Segments& segments,
                                    const Sums& sums, const float* starts, const BackwardParts& parts,
                                    bool sums_only, void* stream);

}  // namespace occam::kernels
