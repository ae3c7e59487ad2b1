#pragma once
// Windows of tokens, each in its matrix form on the tensor cores, with states passed between them: bf16 with
// f32 sums. See README.md.
#include "core/half.h"
#include "ops/matrix_scan/kernel.h"

namespace occam::kernels {

/// The state between windows: v k^T summed [lines,windows,p,n] (transposed), and the same of v = 1.
struct WindowStates {
  const bf16* states = nullptr;
  const float* sums = nullptr;  // [lines,windows,n]; null without floor
};

/// `windows` of `step` tokens. Lines are [b,2,h].
struct WindowPlan {
  /// A head is worked on in both directions, which read the same q, k and v; else a block has one direction
  /// of a group (both, when they are merged), whose heads share scores, forward `heads` of them in each of
  /// `parts` blocks.
  bool both = false;
  int64_t windows = 1, step = 0, parts = 1, heads = 1;
  int64_t at_once = 1;  // multiprocessors
  WindowStates before;  // what each window begins with
  WindowStates after;   // and the gradient of what it ends with

  OCCAM_HD bool connected() const { return windows > 1; }
};

WindowPlan window_plan(const MatrixScanShape& s, bool both);

/// Floats of scratch for the states of a plan; for a backward pass both kinds.
int64_t window_state_floats(const MatrixScanShape& s, const WindowPlan& plan, bool backward);
/// Fills in plan.before (and plan.after), in `scratch`.
void window_states(const MatrixScanForward<bf16, float>& a, WindowPlan& plan, float* scratch, void* stream);
void window_states(const MatrixScanBackward<bf16, float>& a, WindowPlan& plan, float* scratch, void* stream);

/// Do both directions read the same q, k and v?
template <class Args>
bool reads_both(const Args& a) {
  return a.q.r == 0 && a.k.r == 0 && a.v.r == 0;
}
/// bf16 on the tensor cores: p = 64; n = 64, or n = 128 for directions of their own; rows in whole 16-byte
/// pieces; no floor where directions of their own are merged.
bool fits_windows(const MatrixScanForward<bf16, float>& a);
int64_t window_fwd_scratch(const MatrixScanForward<bf16, float>& a);
void window_fwd(const MatrixScanForward<bf16, float>& a, float* scratch, void* stream);
/// The part of it where both directions read the same, with a plan whose states are there.
void window_fwd_both(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan, void* stream);
/// The same by warpgroups, where the device and the build have them.
bool has_warpgroups();
void window_fwd_both_warpgroups(const MatrixScanForward<bf16, float>& a, const WindowPlan& plan,
                                void* stream);

/// The same for backward; with both directions in a block gv, and gq and gk where both read the same, are
/// [b,t,1,...], summed over the directions.
bool fits_window_bwd(const MatrixScanBackward<bf16, float>& a);
int64_t window_bwd_scratch(const MatrixScanBackward<bf16, float>& a);
int64_t window_bwd_skips(const MatrixScanBackward<bf16, float>& a);
/// The part of it by warpgroups: merged directions that read the same, in one window.
bool fits_warpgroups_bwd(const MatrixScanBackward<bf16, float>& a, const WindowPlan& plan);
void window_bwd_warpgroups(const MatrixScanBackward<bf16, float>& a, const WindowPlan& plan, void* stream);
void window_bwd(const MatrixScanBackward<bf16, float>& a, float* scratch, void* stream);

}  // namespace occam::kernels
