#pragma once
#include <cstdint>

namespace occam {

/// Drop path of the branch: of each sample's rows the scale, 0 where it is dropped.
template <class T>
struct BranchScales {
  const T* of_sample = nullptr;  // null: 1
  int64_t rows_of_sample = 1;
  T of_row(int64_t row) const { return of_sample ? of_sample[row / rows_of_sample] : T(1); }
};

/// sum = x + scale * branch (no branch: the row is x), then y, mean and 1 / sqrt(variance + eps) of the row.
template <class T>
struct LayerNormForwardCpu {
  int64_t rows = 0, c = 0;
  T eps = 0;
  const T *x = nullptr, *branch = nullptr, *weight = nullptr, *bias = nullptr;
  T *sum = nullptr, *y = nullptr, *mean = nullptr, *rstd = nullptr;
  BranchScales<T> scales;
};
template <class T>
void layer_norm_forward_cpu(const LayerNormForwardCpu<T>& a);

/// gx = gsum + the norm's gradient (gsum null: 0), gbranch = scale * gx, gweight and gbias; null: not wanted.
template <class T>
struct LayerNormBackwardCpu {
  int64_t rows = 0, c = 0;
  const T *x = nullptr, *weight = nullptr, *gy = nullptr, *gsum = nullptr, *mean = nullptr, *rstd = nullptr;
  T *gx = nullptr, *gbranch = nullptr, *gweight = nullptr, *gbias = nullptr;
  BranchScales<T> scales;
};
/// The sums over rows are made in parts of a fixed number of rows, so that threads do not change them.
template <class T>
void layer_norm_backward_cpu(const LayerNormBackwardCpu<T>& a);

}  // namespace occam
