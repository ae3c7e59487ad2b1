#pragma once
// The scan behind plain types. Head i of h reads group i / (h / g) of q and k.
#include <cstdint>

#include "core/half.h"
#include "core/rows.h"

namespace occam::kernels {

/// Sequences and widths. A "row" is a token's place in the tensors [b,t,...] or, ragged, [n,...].
struct MatrixScanShape : SequenceRows {
  int64_t g = 0, h = 0, n = 0, p = 0;
  bool merge = false;
  OCCAM_HD int64_t outputs() const { return merge ? 1 : 2; }  // e
};

/// [b, t, direction, head or group, width] with the last axis contiguous.
template <class T>
struct ScanView {
  const T* data = nullptr;
  int64_t b = 0, t = 0, r = 0, h = 0;  // strides in elements

  /// The first token of a sequence.
  OCCAM_HD const T* of(const SequenceRows& rows, int64_t image) const {
    return data + (rows.offsets == nullptr ? image * b : rows.begin(image) * t);
  }
};

/// T: storage of q, k, v, y; A: of everything else (f32 for f32 and bf16).
template <class T, class A>
struct MatrixScanForward {
  MatrixScanShape s;
  ScanView<T> q, k, v;
  const A* log_decay = nullptr;  // [b,t,2,h]
  const A* scale = nullptr;      // [b,t,2,h] or null
  const A* skip = nullptr;       // [2,h] or null
  const A* floor = nullptr;      // [b,t,e,h] or null
  const A* diagonal = nullptr;   // [b,t,h] or null
  T* y = nullptr;                // [b,t,h,e,p]
  A* den = nullptr;              // [b,t,e,h]; null without floor
};

/// Which gradients are sums over the directions: [b,t,1,...].
struct MatrixScanSums {
  bool keys = false, values = false;  // q and k; v
};

/// gq and gk are [b,t,2,g,n], gv [b,t,2,h,p] (but see matrix_scan_bwd_sums), the others as above; null where
/// nobody asks for them. Rows of no sequence are not written.
template <class T, class A>
struct MatrixScanBackward {
  MatrixScanShape s;
  ScanView<T> q, k, v;
  const A *log_decay = nullptr, *scale = nullptr, *skip = nullptr, *floor = nullptr, *diagonal = nullptr,
          *den = nullptr;
  const T *y = nullptr, *gy = nullptr;  // y: null without floor
  T *gq = nullptr, *gk = nullptr, *gv = nullptr;
  A* glog_decay = nullptr;
  A* gscale = nullptr;
  A* gskip = nullptr;  // [matrix_scan_bwd_skips,2,h], to be summed over the first axis
  A* gfloor = nullptr;
  A* gdiagonal = nullptr;
};

template <class T>
void matrix_scan_fwd_cpu(const MatrixScanForward<T, T>& a);
template <class T>
void matrix_scan_bwd_cpu(const MatrixScanBackward<T, T>& a);

/// Can the device's shared memory hold two states of n x p?
bool matrix_scan_fits(const MatrixScanShape& s, bool normed);
/// Floats of scratch memory for the calls below.
template <class T>
int64_t matrix_scan_fwd_scratch(const MatrixScanForward<T, float>& a);
template <class T>
int64_t matrix_scan_bwd_scratch(const MatrixScanBackward<T, float>& a);
/// What the backward kernels sum by themselves.
template <class T>
MatrixScanSums matrix_scan_bwd_sums(const MatrixScanBackward<T, float>& a);
/// Rows of gskip.
template <class T>
int64_t matrix_scan_bwd_skips(const MatrixScanBackward<T, float>& a);
template <class T>
void matrix_scan_fwd(const MatrixScanForward<T, float>& a, float* scratch, void* stream);
template <class T>
void matrix_scan_bwd(const MatrixScanBackward<T, float>& a, float* scratch, void* stream);

}  // namespace occam::kernels
