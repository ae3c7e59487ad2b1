#pragma once
#include <cstdint>

namespace occam::kernels {

/// Drop path of the branch: sample row / rows_of_sample is kept when philox_uniform(key, *step, sample) >= p.
struct RowDrop {
  float p = 0;  // 0: none
  uint64_t key = 0;
  const int64_t* step = nullptr;
  int64_t rows_of_sample = 1;
};

/// Forward: sum = x + drop(branch) (both null: the row is x), then y, mean and 1 / sqrt(variance + eps) of
/// the row.
template <class T>
struct LayerNormForward {
  int64_t rows = 0, c = 0;
  float eps = 0;
  const T *x = nullptr, *branch = nullptr, *weight = nullptr, *bias = nullptr;
  T *sum = nullptr, *y = nullptr;
  float *mean = nullptr, *rstd = nullptr;
  RowDrop drop;
};
template <class T>
void layer_norm_fwd(const LayerNormForward<T>& a, void* stream);

/// Backward: x is the row that was normalised, gy the gradient of y (null: 0), gsum that of the sum itself
/// (null: 0). gx = gsum + the norm's gradient; gbranch = drop(gx), null where it is gx. gweight = sum over
/// rows of gy xhat and gbias = sum of gy, in f32; both null or both given. `scratch` holds
/// layer_norm_scratch() floats.
template <class T>
struct LayerNormBackward {
  int64_t rows = 0, c = 0;
  const T *x = nullptr, *weight = nullptr, *gy = nullptr, *gsum = nullptr;
  const float *mean = nullptr, *rstd = nullptr;
  T *gx = nullptr, *gbranch = nullptr;
  float *gweight = nullptr, *gbias = nullptr, *scratch = nullptr;
  RowDrop drop;
};
template <class T>
void layer_norm_bwd(const LayerNormBackward<T>& a, void* stream);
int64_t layer_norm_scratch(int64_t rows, int64_t c);

}  // namespace occam::kernels
