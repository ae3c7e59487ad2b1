#pragma once
#include "ops/scan.h"

namespace occam::kernels {

template <class T>
struct SelectiveScan {
  ChannelScanShape s;
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
/// Parts: sequences.
template <class T>
void selective_scan_bwd_cpu(const SelectiveScanBackward<T, T>& a);

/// Workspace in floats, and parts of the parameters' gradients.
int64_t selective_scan_fwd_workspace(const ChannelScanShape& s);
int64_t selective_scan_bwd_workspace(const ChannelScanShape& s);
int64_t selective_scan_parts(const ChannelScanShape& s);
template <class T>
void selective_scan_fwd(const SelectiveScan<T>& a, float* workspace, void* stream);
template <class T>
void selective_scan_bwd(const SelectiveScanBackward<T, float>& a, float* workspace, void* stream);

}  // namespace occam::kernels
