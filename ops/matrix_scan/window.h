#pragma once
// Windows of the tensor-core kernels, and the states between them.
#include "core/half.h"
#include "ops/matrix_scan/kernel.h"

namespace occam::kernels {

/// `windows` of `step` tokens; blocks have `heads` heads each, `parts` of them for all heads (of a group).
struct WindowPlan {
  /// Blocks go through heads in both directions, which read the same q, k and v; else a block has one
  /// direction of a group, whose heads share scores.
  bool both = false;
  int64_t windows = 1, step = 0, parts = 1, heads = 1;
  const bf16* states = nullptr;  // [b,2,h,windows,p,n]: what each window begins with, transposed
  const float* sums = nullptr;   // [b,2,h,windows,n]: the same of v = 1
};

WindowPlan window_plan(const MatrixScanShape& s, bool both);

/// Floats of scratch for the states of a plan.
int64_t window_state_floats(const MatrixScanShape& s, const WindowPlan& plan);
/// Fills in plan.states and plan.sums, in `scratch`.
void window_states(const MatrixScanForward<bf16, float>& a, WindowPlan& plan, float* scratch, void* stream);

/// Do both directions read the same q, k and v?
template <class Args>
bool reads_both(const Args& a) {
  return a.q.r == 0 && a.k.r == 0 && a.v.r == 0;
}
/// bf16 on the tensor cores: p = 64; n = 64, or n = 128 for directions of their own; rows in whole 16-byte
/// pieces; `merge` where both directions read the same.
bool fits_windows(const MatrixScanForward<bf16, float>& a);
int64_t window_fwd_scratch(const MatrixScanForward<bf16, float>& a);
void window_fwd(const MatrixScanForward<bf16, float>& a, float* scratch, void* stream);

/// The same for backward, of sequences of one window; with both directions in a block gq, gk and gv are
/// [b,t,1,...], summed over the directions.
bool fits_window_bwd(const MatrixScanBackward<bf16, float>& a);
void window_bwd(const MatrixScanBackward<bf16, float>& a, void* stream);

}  // namespace occam::kernels
