#pragma once
// Scans along tokens, one chain for each (sequence, head, direction, channel).
#include <cstdint>

#include "core/rows.h"

namespace occam::kernels {

enum class Cell : int { plain, min_gru, min_lstm };
constexpr int parts_of(Cell cell) { return cell == Cell::min_lstm ? 3 : 2; }

struct DiagonalScanShape : SequenceRows {
  int64_t h = 0, w = 0;
  OCCAM_HD int64_t chains() const { return b * h * 2 * w; }
};

/// What a step reads lies in `parts` arrays [b,t,h,2] of w elements, `stride` from one to the next: a and b,
/// or the gates (z, v) or (f, i, v) before activation and before `bias` [2,h,parts w] where there is one.
template <class T>
struct DiagonalScan {
  Cell cell = Cell::plain;
  DiagonalScanShape s;
  const T* part[3] = {};
  int64_t stride = 0;
  const T* bias = nullptr;
  T* y = nullptr;  // [b,t,h,2,w]
};

/// g_part may be part: each element is read before it is written.
template <class T>
struct DiagonalScanBackward {
  Cell cell = Cell::plain;
  DiagonalScanShape s;
  const T* part[3] = {};
  int64_t stride = 0;
  const T* bias = nullptr;
  const T *y = nullptr, *gy = nullptr;  // [b,t,h,2,w]
  T* g_part[3] = {};
};

/// Gates and scan in one: x [b,t,h,64], weights [2,h,parts 64,64], bias [2,h,parts 64], y [b,t,h,2,64]; where
/// there is a projection [h,64,128], y = project states + project_bias [h,64] (or null), [b,t,h,64].
struct HeadScan {
  Cell cell = Cell::min_gru;
  DiagonalScanShape s;
  const bf16 *x = nullptr, *weight = nullptr, *bias = nullptr, *project = nullptr, *project_bias = nullptr;
  bf16* y = nullptr;
};

/// Without projection: gradients gx of x, and those of the weights and biases, f32 or bf16.
struct HeadScanBackward {
  Cell cell = Cell::min_gru;
  DiagonalScanShape s;
  const bf16 *x = nullptr, *weight = nullptr, *bias = nullptr, *y = nullptr, *gy = nullptr;
  bf16* gx = nullptr;
  void *g_weight = nullptr, *g_bias = nullptr;
  bool f32_weight = false, f32_bias = false;
};

template <class T>
void diagonal_scan_fwd_cpu(const DiagonalScan<T>& a);
template <class T>
void diagonal_scan_bwd_cpu(const DiagonalScanBackward<T>& a);

/// Floats of workspace that the scans of this shape need; 0 when one pass does.
int64_t diagonal_scan_workspace(const DiagonalScanShape& s);
template <class T>
void diagonal_scan_fwd(const DiagonalScan<T>& a, float* workspace, void* stream);
template <class T>
void diagonal_scan_bwd(const DiagonalScanBackward<T>& a, float* workspace, void* stream);

/// False when the device or the pointers do not allow it (64 wide only): then products and scan run apart.
bool head_scan_fits(const HeadScan& a);
int64_t head_scan_workspace(const HeadScan& a);
void head_scan_fwd(const HeadScan& a, float* workspace, void* stream);
bool head_scan_fits(const HeadScanBackward& a);
int64_t head_scan_workspace(const HeadScanBackward& a);
void head_scan_bwd(const HeadScanBackward& a, float* workspace, void* stream);

}  // namespace occam::kernels
