#include "ops/rms_norm/op.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/vmath.h"
#include "ops/op.h"
#include "ops/reduce/op.h"
#include "ops/rms_norm/kernel.h"

namespace occam {
namespace {

/// Rows of the CPU: x, gate and gy of one (token, r) gathered side by side.
template <class T>
struct Rows {
  const kernels::RmsNormArgs<T>& a;
  int64_t width = a.a * a.c;

  const T* gate(int64_t n) const {
    const int64_t token = n / a.r;
    return a.gate + token / a.t * a.gate_b + token % a.t * a.gate_t + n % a.r * a.gate_r;
  }
  template <class U>
  U* part(U* packed, int64_t n, int64_t i) const {
    return packed + ((n / a.r * a.a + i) * a.r + n % a.r) * a.c;
  }
  void gather(const T* packed, int64_t n, T* to) const {
    for (int64_t i = 0; i < a.a; ++i) std::copy_n(part(packed, n, i), a.c, to + i * a.c);
  }
  void scatter(const T* from, T* packed, int64_t n) const {
    for (int64_t i = 0; i < a.a; ++i) std::copy_n(from + i * a.c, a.c, part(packed, n, i));
  }
};

template <class T>
OCCAM_VECTORIZED void pass_gate(T* x, const T* gate, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= gate[i] * sigmoid_of(gate[i]);
}
template <class T>
OCCAM_VECTORIZED T dot(const T* p, const T* q, int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += p[i] * q[i];
  return sum;
}

template <class T>
void forward_cpu(const kernels::RmsNormArgs<T>& a, T* rstd) {
  const Rows<T> rows{a};
  const int64_t count = a.b * a.t * a.r;
#pragma omp parallel if (count * rows.width > 16384)
  {
    std::vector<T> u(size_t(rows.width));
#pragma omp for
    for (int64_t n = 0; n < count; ++n) {
      rows.gather(a.x, n, u.data());
      if (a.gate != nullptr) pass_gate(u.data(), rows.gate(n), rows.width);
      rstd[n] = 1 / std::sqrt(dot(u.data(), u.data(), rows.width) / T(rows.width) + T(a.eps));
      const T* w = a.weight + n % a.r * rows.width;
      for (int64_t i = 0; i < rows.width; ++i) u[size_t(i)] *= rstd[n] * w[i];
      rows.scatter(u.data(), a.y, n);
    }
  }
}

/// gweight [r,a,c] in f64 sums over the tokens, a task for each r, so that threads do not change them.
template <class T>
void backward_cpu(const kernels::RmsNormArgs<T>& a, const T* rstd, T* gweight) {
  const Rows<T> rows{a};
  const int64_t width = rows.width, tokens = a.b * a.t;
#pragma omp parallel for if (tokens * a.r * width > 16384)
  for (int64_t r = 0; r < a.r; ++r) {
    std::vector<T> u(static_cast<size_t>(width)), x(u), g(u), gz(u);
    std::vector<double> sums(size_t(width), 0.0);
    const T* w = a.weight + r * width;
    for (int64_t token = 0; token < tokens; ++token) {
      const int64_t n = token * a.r + r;
      rows.gather(a.x, n, x.data());
      rows.gather(a.gy, n, g.data());
      u = x;
      if (a.gate != nullptr) pass_gate(u.data(), rows.gate(n), width);
      for (int64_t i = 0; i < width; ++i) {
        sums[size_t(i)] += double(g[size_t(i)] * u[size_t(i)] * rstd[n]);
        g[size_t(i)] *= w[i];
      }
      const T along = dot(g.data(), u.data(), width) / T(width) * rstd[n] * rstd[n];
      for (int64_t i = 0; i < width; ++i) g[size_t(i)] = rstd[n] * (g[size_t(i)] - u[size_t(i)] * along);
      if (a.gate != nullptr) {
        const T* gate = rows.gate(n);
        for (int64_t i = 0; i < width; ++i) {
          const T s = sigmoid_of(gate[i]);
          a.ggate[n * width + i] = g[size_t(i)] * x[size_t(i)] * s * (1 + gate[i] * (1 - s));
          g[size_t(i)] *= gate[i] * s;
        }
      }
      rows.scatter(g.data(), a.gx, n);
    }
    for (int64_t i = 0; i < width; ++i) gweight[r * width + i] = T(sums[size_t(i)]);
  }
}

struct RmsNormOp {
  struct Attrs {
    double eps = 1e-5;
  };
  static constexpr OpInfo info{.name = "rms_norm",
                               .contract = "x: b t a r c, weight: r a c, gate?: b t r a c -> b t a r c",
                               .layout = Layout::strided};

  template <class T>
  static kernels::RmsNormArgs<T> arguments(const Tensor& x, const Tensor& weight, const Tensor& gate,
                                           const Tensor& rstd, double eps) {
    kernels::RmsNormArgs<T> a{x.size(0), x.size(1), x.size(2),   x.size(3),
                              x.size(4), eps,       x.data<T>(), weight.data<T>()};
    if (gate) {
      a.gate = gate.data<T>();
      a.gate_b = gate.strides()[0], a.gate_t = gate.strides()[1], a.gate_r = gate.strides()[2];
    }
    if (x.is_cuda()) a.rstd = rstd.data<float>();
    return a;
  }

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    Tensor x = raw::contiguous(in[0]), weight = raw::contiguous(in[1]), gate = in[2];
    OCCAM_CHECK(weight.numel() > 0, ErrorKind::shape, "rms_norm: weight {} is empty", weight.shape().str());
    if (gate && (gate.strides()[4] != 1 || gate.strides()[3] != gate.size(4))) gate = raw::contiguous(gate);
    TensorOptions wide{x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device()};
    Tensor y = empty_like(x), rstd = empty({x.size(0), x.size(1), x.size(3)}, wide);
    if (y.numel() == 0) {
    } else if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA({
          auto a = arguments<T>(x, weight, gate, rstd, attrs.eps);
          a.y = y.data<T>();
          kernels::rms_norm_fwd(a, current_stream(x.device()).handle);
        });
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        auto a = arguments<T>(x, weight, gate, rstd, attrs.eps);
        a.y = y.data<T>();
        forward_cpu(a, rstd.data<T>());
      });
    }
    c.save({x, weight, gate, rstd});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy_given) {
    Tensor x = c.saved(0), weight = c.saved(1), gate = c.saved(2), rstd = c.saved(3),
           gy = raw::contiguous(gy_given[0]);
    const bool all = x.device().is_cpu();
    Tensor gx = all || c.needs(0) ? empty_like(x) : Tensor(), gweight,
           ggate = gate && (all || c.needs(2)) ? empty(gate.shape(), options_of(x)) : Tensor();
    auto with = [&]<class T>(kernels::RmsNormArgs<T> a) {
      a.gy = gy.data<T>(), a.gx = gx ? gx.data<T>() : nullptr;
      a.ggate = ggate ? ggate.data<T>() : nullptr;
      return a;
    };
    if (x.numel() == 0) {
      gweight = zeros(weight.shape(), options_of(rstd));
    } else if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA({
          auto a = with(arguments<T>(x, weight, gate, rstd, c.attrs<Attrs>().eps));
          Tensor partial;
          if (c.needs(1)) {
            partial = empty({kernels::rms_norm_parts(a), weight.numel()}, options_of(rstd));
            a.partial = partial.data<float>();
          }
          kernels::rms_norm_bwd(a, current_stream(x.device()).handle);
          if (partial)
            gweight = raw::reshape(raw::sum_to_shape(partial, {1, weight.numel()}), weight.shape());
        });
      });
    } else {
      gweight = empty(weight.shape(), options_of(rstd));
      dispatch_float(x.dtype(), [&]<class T>() {
        backward_cpu(with(arguments<T>(x, weight, gate, rstd, c.attrs<Attrs>().eps)), rstd.data<T>(),
                     gweight.data<T>());
      });
    }
    return {c.needs(0) ? gx : Tensor(), c.needs(1) ? gweight : Tensor(), c.needs(2) ? ggate : Tensor()};
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {20 * double(in[0].numel()), bytes_of(in, dtype) + double(in[0].numel()) * double(size_of(dtype))};
  }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, const Tensor& gate, double eps) {
  return apply<RmsNormOp>({x, weight, gate}, {eps})[0];
}

OCCAM_REGISTER(rms_norm, RmsNormOp);

}  // namespace occam
