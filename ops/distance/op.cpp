#include "ops/distance/op.h"

#include <algorithm>
#include <cmath>

#include "ops/distance/kernel.h"
#include "ops/op.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

/// Mean over `count` of row sums: [rows] -> scalar, outside the graph.
Tensor mean_of(const Tensor& rows, double count) {
  Tensor total = zeros({1}, options_of(rows));
  total.add_(raw::sum_to_shape(rows, {1}), 1 / count);
  return raw::reshape(total, {});
}

TensorOptions wide(const Tensor& x) {
  return {x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device()};
}

struct Mse {
  struct Attrs {};
  static constexpr OpInfo info{.name = "mse", .contract = "x: ... c, y: ... c -> ()", .cast = Cast::any};
  static Outs forward(Ctx& c, In in, const Attrs&) {
    const Tensor &x = in[0], &y = in[1];
    OCCAM_CHECK(x.dtype() == y.dtype(), ErrorKind::shape, "mse: x is {} but y is {}", name_of(x.dtype()),
                name_of(y.dtype()));
    OCCAM_CHECK(x.numel() > 0, ErrorKind::shape, "mse: x {} is empty", x.shape().str());
    int64_t n = x.size(-1), rows = x.numel() / n;
    Tensor sums = empty({rows}, wide(x));
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::mse_fwd(x.data<T>(), y.data<T>(), sums.data<float>(), rows, n,
                                       current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        const T *a = x.data<T>(), *b = y.data<T>();
        T* out = sums.data<T>();
#pragma omp parallel for if (rows * n > 16384)
        for (int64_t r = 0; r < rows; ++r) {
          T sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = r * n; i < (r + 1) * n; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
          out[r] = sum;
        }
      });
    }
    c.save({x, y});
    return {mean_of(sums, double(x.numel()))};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor x = c.saved(0), y = c.saved(1);
    Tensor gx = c.needs(0) ? empty_like(x) : Tensor(), gy2 = c.needs(1) ? empty_like(y) : Tensor();
    double scale = 2 / double(x.numel());
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::mse_bwd(x.data<T>(), y.data<T>(), gy[0].data<float>(), float(scale),
                                       gx ? gx.data<T>() : nullptr, gy2 ? gy2.data<T>() : nullptr, x.numel(),
                                       current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        T factor = *gy[0].data<T>() * T(scale);
        for (int64_t i = 0, n = x.numel(); i < n; ++i) {
          T g = factor * (x.data<T>()[i] - y.data<T>()[i]);
          if (gx) gx.data<T>()[i] = g;
          if (gy2) gy2.data<T>()[i] = -g;
        }
      });
    }
    return {gx, gy2};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {3 * double(in[0].numel()), bytes_of(in, dtype)};
  }
};

struct CosineDistance {
  struct Attrs {};
  static constexpr OpInfo info{
      .name = "cosine_distance", .contract = "x: ... c, y: ... c -> ()", .cast = Cast::any};
  static Outs forward(Ctx& c, In in, const Attrs&) {
    const Tensor &x = in[0], &y = in[1];
    OCCAM_CHECK(x.dtype() == y.dtype(), ErrorKind::shape, "cosine_distance: x is {} but y is {}",
                name_of(x.dtype()), name_of(y.dtype()));
    OCCAM_CHECK(x.numel() > 0, ErrorKind::shape, "cosine_distance: x {} is empty", x.shape().str());
    int64_t n = x.size(-1), rows = x.numel() / n;
    Tensor distances = empty({rows}, wide(x)), stats = empty({rows, 3}, wide(x));
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::cosine_fwd(x.data<T>(), y.data<T>(), distances.data<float>(),
                                          stats.data<float>(), rows, n, current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        for (int64_t r = 0; r < rows; ++r) {
          T* s = stats.data<T>() + 3 * r;
          s[0] = s[1] = s[2] = 0;
          for (int64_t i = r * n; i < (r + 1) * n; ++i) {
            T a = x.data<T>()[i], b = y.data<T>()[i];
            s[0] += a * b, s[1] += a * a, s[2] += b * b;
          }
          distances.data<T>()[r] = 1 - s[0] / std::max(std::sqrt(s[1]) * std::sqrt(s[2]), T(1e-8));
        }
      });
    }
    c.save({x, y, stats});
    return {mean_of(distances, double(rows))};
  }
  /// d cos / dx = y / (|x||y|) - cos x / |x|^2; where the norm is below its floor, y / floor.
  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor x = c.saved(0), y = c.saved(1), stats = c.saved(2);
    Tensor gx = c.needs(0) ? empty_like(x) : Tensor(), gy2 = c.needs(1) ? empty_like(y) : Tensor();
    int64_t n = x.size(-1), rows = x.numel() / n;
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::cosine_bwd(x.data<T>(), y.data<T>(), stats.data<float>(), gy[0].data<float>(),
                                          float(1 / double(rows)), gx ? gx.data<T>() : nullptr,
                                          gy2 ? gy2.data<T>() : nullptr, rows, n,
                                          current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        T g = -*gy[0].data<T>() / T(rows);
        for (int64_t i = 0; i < rows * n; ++i) {
          const T* s = stats.data<T>() + 3 * (i / n);
          T norm = std::sqrt(s[1]) * std::sqrt(s[2]), a = x.data<T>()[i], b = y.data<T>()[i];
          bool floor = norm < T(1e-8);
          T inverse = floor ? T(1e8) : 1 / norm, cosine = s[0] * inverse;
          if (gx) gx.data<T>()[i] = g * (b * inverse - (floor ? T(0) : a * cosine / s[1]));
          if (gy2) gy2.data<T>()[i] = g * (a * inverse - (floor ? T(0) : b * cosine / s[2]));
        }
      });
    }
    return {gx, gy2};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {6 * double(in[0].numel()), bytes_of(in, dtype)};
  }
};

}  // namespace

Tensor mse(const Tensor& x, const Tensor& y) { return apply<Mse>({x, y})[0]; }
Tensor cosine_distance(const Tensor& x, const Tensor& y) { return apply<CosineDistance>({x, y})[0]; }

OCCAM_REGISTER(distance, Mse, CosineDistance);

}  // namespace occam
