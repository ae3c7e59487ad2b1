#pragma once
#include <cstdint>

namespace occam::kernels {

/// Also writes mean and 1/sqrt(variance + eps) of each row.
template <class T>
void layer_norm_fwd(const T* x, const T* weight, const T* bias, T* y, float* mean, float* rstd, int64_t rows,
                    int64_t c, float eps, void* stream);
/// gx of each row; may be skipped by passing null.
template <class T>
void layer_norm_bwd_x(const T* x, const T* weight, const T* gy, const float* mean, const float* rstd, T* gx,
                      int64_t rows, int64_t c, void* stream);
/// gweight = sum over rows of gy xhat, gbias = sum of gy, in f32. `scratch` holds layer_norm_scratch()
/// floats.
template <class T>
void layer_norm_bwd_params(const T* x, const T* gy, const float* mean, const float* rstd, float* gweight,
                           float* gbias, int64_t rows, int64_t c, float* scratch, void* stream);
int64_t layer_norm_scratch(int64_t rows, int64_t c);

}  // namespace occam::kernels
