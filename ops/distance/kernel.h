#pragma once
#include <cstdint>

namespace occam::kernels {

/// row[r] = sum over the row of (x - y)^2.
template <class T>
void mse_fwd(const T* x, const T* y, float* row, int64_t rows, int64_t c, void* stream);
/// gx = *gy * scale * (x - y), gy2 = -gx; either may be null.
template <class T>
void mse_bwd(const T* x, const T* y, const float* gy, float scale, T* gx, T* gy2, int64_t count,
             void* stream);

/// row[r] = 1 - cosine; stats [r, 3] = x.y, x.x, y.y.
template <class T>
void cosine_fwd(const T* x, const T* y, float* row, float* stats, int64_t rows, int64_t c, void* stream);
template <class T>
void cosine_bwd(const T* x, const T* y, const float* stats, const float* gy, float scale, T* gx, T* gy2,
                int64_t rows, int64_t c, void* stream);

}  // namespace occam::kernels
