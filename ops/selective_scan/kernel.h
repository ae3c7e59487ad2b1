#pragma once
#include <cstdint>

#include "core/half.h"

namespace occam::kernels {

struct SelectiveShape {
  int64_t b = 0, t = 0, c = 0, n = 0, w = 0;  // w: channels a head
  /// Element of y for (image, token, direction, channel).
  OCCAM_HD int64_t y_at(int64_t image, int64_t token, int64_t direction, int64_t channel) const {
    return (image * t + token) * 2 * c + channel / w * 2 * w + direction * w + channel % w;
  }
};

template <class T>
struct SelectiveScan {
  SelectiveShape s;
  const T *u = nullptr, *delta = nullptr, *a_log = nullptr, *in = nullptr, *out = nullptr, *skip = nullptr;
  T* y = nullptr;  // [b,t,h,2,w]
};

/// Gradients of the parameters come in parts [parts][2,c,n] and [parts][2,c], to be added up.
template <class T, class A>
struct SelectiveScanBackward {
  SelectiveScan<T> forward;  // y is not read
  const T* gy = nullptr;
  T *gu = nullptr, *g_delta = nullptr, *g_in = nullptr, *g_out = nullptr;
  A *g_a = nullptr, *g_skip = nullptr;
};

template <class T>
void selective_scan_fwd_cpu(const SelectiveScan<T>& a);
/// Parts: images.
template <class T>
void selective_scan_bwd_cpu(const SelectiveScanBackward<T, T>& a);

/// Workspace in floats, and parts of the parameters' gradients.
int64_t selective_scan_fwd_workspace(const SelectiveShape& s);
int64_t selective_scan_bwd_workspace(const SelectiveShape& s);
int64_t selective_scan_parts(const SelectiveShape& s);
template <class T>
void selective_scan_fwd(const SelectiveScan<T>& a, float* workspace, void* stream);
template <class T>
void selective_scan_bwd(const SelectiveScanBackward<T, float>& a, float* workspace, void* stream);

}  // namespace occam::kernels
