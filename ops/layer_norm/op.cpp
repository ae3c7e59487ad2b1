#include "ops/layer_norm/op.h"

#include <algorithm>
#include <cmath>

#include "core/vmath.h"
#include "ops/layer_norm/kernel.h"
#include "ops/op.h"

namespace occam {
namespace {

template <class T>
void forward_cpu(const T* x, const T* weight, const T* bias, T* y, T* mean, T* rstd, int64_t rows, int64_t c,
                 T eps) {
#pragma omp parallel for if (rows * c > 16384)
  for (int64_t r = 0; r < rows; ++r) {
    const T* in = x + r * c;
    T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < c; ++i) sum += in[i];
    T m = sum / T(c);
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < c; ++i) squares += (in[i] - m) * (in[i] - m);
    T s = 1 / std::sqrt(squares / T(c) + eps);
    for (int64_t i = 0; i < c; ++i) y[r * c + i] = (in[i] - m) * s * weight[i] + bias[i];
    mean[r] = m, rstd[r] = s;
  }
}

template <class T>
void backward_x_cpu(const T* x, const T* weight, const T* gy, const T* mean, const T* rstd, T* gx,
                    int64_t rows, int64_t c) {
#pragma omp parallel for if (rows * c > 16384)
  for (int64_t r = 0; r < rows; ++r) {
    const T *in = x + r * c, *g = gy + r * c;
    T m = mean[r], s = rstd[r], a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (int64_t i = 0; i < c; ++i) a += g[i] * weight[i], b += g[i] * weight[i] * (in[i] - m) * s;
    a /= T(c), b /= T(c);
    for (int64_t i = 0; i < c; ++i) gx[r * c + i] = s * (g[i] * weight[i] - a - (in[i] - m) * s * b);
  }
}

/// Tiles of columns, so that the sums do not depend on the number of threads; f64 sums over the rows.
template <class T>
void backward_params_cpu(const T* x, const T* gy, const T* mean, const T* rstd, T* gweight, T* gbias,
                         int64_t rows, int64_t c) {
  constexpr int64_t kTile = 64;
#pragma omp parallel for if (rows * c > 16384)
  for (int64_t start = 0; start < c; start += kTile) {
    int64_t count = std::min(kTile, c - start);
    double w[kTile] = {}, b[kTile] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const T *in = x + r * c + start, *g = gy + r * c + start;
      for (int64_t i = 0; i < count; ++i) w[i] += g[i] * (in[i] - mean[r]) * rstd[r], b[i] += g[i];
    }
    for (int64_t i = 0; i < count; ++i) gweight[start + i] = T(w[i]), gbias[start + i] = T(b[i]);
  }
}

struct LayerNorm {
  struct Attrs {
    double eps = 1e-5;
  };
  static constexpr OpInfo info{.name = "layer_norm", .contract = "x: ... c, weight: c, bias: c -> ... c"};

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    const Tensor &x = in[0], &weight = in[1], &bias = in[2];
    int64_t n = x.size(-1);
    OCCAM_CHECK(n > 0, ErrorKind::shape, "layer_norm: axis `c` of x {} is empty", x.shape().str());
    int64_t rows = x.numel() / n;
    DType wide = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
    Tensor y = empty_like(x), mean = empty({rows}, {wide, x.device()}),
           rstd = empty({rows}, {wide, x.device()});
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::layer_norm_fwd(x.data<T>(), weight.data<T>(), bias.data<T>(), y.data<T>(),
                                              mean.data<float>(), rstd.data<float>(), rows, n, float(a.eps),
                                              current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        forward_cpu(x.data<T>(), weight.data<T>(), bias.data<T>(), y.data<T>(), mean.data<T>(),
                    rstd.data<T>(), rows, n, T(a.eps));
      });
    }
    c.save({x, c.needs(0) ? weight : Tensor(), mean, rstd});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor x = c.saved(0), weight = c.saved(1), mean = c.saved(2), rstd = c.saved(3), g = gy[0];
    int64_t n = x.size(-1), rows = x.numel() / n;
    Grads grads(3);
    if (c.needs(0)) grads[0] = empty_like(x);
    bool params = c.needs(1) || c.needs(2);
    Tensor gw, gb;
    if (params) gw = empty({n}, options_of(mean)), gb = empty({n}, options_of(mean));
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA({
          void* stream = current_stream(x.device()).handle;
          if (c.needs(0))
            kernels::layer_norm_bwd_x(x.data<T>(), weight.data<T>(), g.data<T>(), mean.data<float>(),
                                      rstd.data<float>(), grads[0].data<T>(), rows, n, stream);
          if (params) {
            Tensor scratch = empty({kernels::layer_norm_scratch(rows, n)}, options_of(mean));
            kernels::layer_norm_bwd_params(x.data<T>(), g.data<T>(), mean.data<float>(), rstd.data<float>(),
                                           gw.data<float>(), gb.data<float>(), rows, n, scratch.data<float>(),
                                           stream);
          }
        });
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        if (c.needs(0))
          backward_x_cpu(x.data<T>(), weight.data<T>(), g.data<T>(), mean.data<T>(), rstd.data<T>(),
                         grads[0].data<T>(), rows, n);
        if (params)
          backward_params_cpu(x.data<T>(), g.data<T>(), mean.data<T>(), rstd.data<T>(), gw.data<T>(),
                              gb.data<T>(), rows, n);
      });
    }
    if (c.needs(1)) grads[1] = gw;
    if (c.needs(2)) grads[2] = gb;
    return grads;
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {8 * double(in[0].numel()), bytes_of(in, dtype) + double(in[0].numel()) * double(size_of(dtype))};
  }
};

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return apply<LayerNorm>({x, weight, bias}, {eps})[0];
}

OCCAM_REGISTER(layer_norm, LayerNorm);

}  // namespace occam
