#include "ops/elementwise/op.h"

#include <algorithm>

#include "ops/elementwise/kernel.h"
#include "ops/op.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

using kernels::Binary;
using kernels::BroadcastPlan;

BroadcastPlan plan_of(const Tensor& a, const Tensor& b, const Shape& out) {
  Tensor x = raw::expand(a, out), z = raw::expand(b, out);
  BroadcastPlan p;
  p.count = out.numel();
  for (int i = 0; i < out.rank(); ++i) {
    if (out[i] == 1) continue;
    int last = p.rank - 1;
    if (last >= 0 && p.a[last] == x.strides()[i] * out[i] && p.b[last] == z.strides()[i] * out[i]) {
      p.shape[last] *= out[i], p.a[last] = x.strides()[i], p.b[last] = z.strides()[i];
    } else {
      p.shape[p.rank] = out[i], p.a[p.rank] = x.strides()[i], p.b[p.rank++] = z.strides()[i];
    }
  }
  if (p.rank == 0) p.rank = 1, p.shape[0] = 1;
  return p;
}

template <Binary Op, class T>
T combine(T a, T b) {
  if constexpr (Op == Binary::add)
    return a + b;
  else if constexpr (Op == Binary::sub)
    return a - b;
  else if constexpr (Op == Binary::mul)
    return a * b;
  else
    return a / b;
}

template <Binary Op, class T>
void run_cpu(const T* a, const T* b, T* y, const BroadcastPlan& p) {
  if (p.count == 0) return;
  int64_t inner = p.shape[p.rank - 1], runs = p.count / inner, step_a = p.a[p.rank - 1],
          step_b = p.b[p.rank - 1];
#pragma omp parallel for if (p.count > 16384)
  for (int64_t r = 0; r < runs; ++r) {
    int64_t rest = r, at_a = 0, at_b = 0;
    for (int axis = p.rank - 2; axis >= 0; --axis) {
      at_a += rest % p.shape[axis] * p.a[axis];
      at_b += rest % p.shape[axis] * p.b[axis];
      rest /= p.shape[axis];
    }
    const T *x = a + at_a, *z = b + at_b;
    T* out = y + r * inner;
    if (step_a == 1 && step_b == 1)
      for (int64_t i = 0; i < inner; ++i) out[i] = combine<Op>(x[i], z[i]);
    else
      for (int64_t i = 0; i < inner; ++i) out[i] = combine<Op>(x[i * step_a], z[i * step_b]);
  }
}

/// The op outside the graph; used by forward and, for products and quotients, backward.
Tensor binary(Binary op, const Tensor& a, const Tensor& b) {
  Shape out = broadcast_shapes(a.shape(), b.shape());
  Tensor y = empty(out, options_of(a));
  BroadcastPlan plan = plan_of(a, b, out);
  if (y.is_cuda()) {
    dispatch_cuda(y.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::binary(op, a.data<T>(), b.data<T>(), y.data<T>(), plan,
                                    current_stream(y.device()).handle));
    });
    return y;
  }
  dispatch_float(y.dtype(), [&]<class T>() {
    const T *x = a.data<T>(), *z = b.data<T>();
    switch (op) {
      case Binary::add:
        return run_cpu<Binary::add>(x, z, y.data<T>(), plan);
      case Binary::sub:
        return run_cpu<Binary::sub>(x, z, y.data<T>(), plan);
      case Binary::mul:
        return run_cpu<Binary::mul>(x, z, y.data<T>(), plan);
      case Binary::div:
        return run_cpu<Binary::div>(x, z, y.data<T>(), plan);
    }
  });
  return y;
}

/// y = x * factor + shift outside the graph.
Tensor scaled(const Tensor& x, double factor, double shift) {
  Tensor in = raw::contiguous(x), y = empty(x.shape(), options_of(x));
  int64_t n = x.numel();
  if (y.is_cuda()) {
    dispatch_cuda(y.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::scale_shift(in.data<T>(), y.data<T>(), n, float(factor), float(shift),
                                         current_stream(y.device()).handle));
    });
  } else {
    dispatch_float(y.dtype(), [&]<class T>() {
      const T* p = in.data<T>();
      T* out = y.data<T>();
#pragma omp parallel for if (n > 16384)
      for (int64_t i = 0; i < n; ++i) out[i] = p[i] * T(factor) + T(shift);
    });
  }
  return y;
}

Cost binary_cost(Shapes in, DType dtype) {
  double out = double(broadcast_shapes(in[0], in[1]).numel());
  return {out, bytes_of(in, dtype) + out * double(size_of(dtype))};
}

template <Binary Op>
constexpr OpInfo info_of(const char* name) {
  return {.name = name, .contract = "a: *, b: * -> *", .layout = Layout::strided};
}

struct Add {
  struct Attrs {};
  static constexpr OpInfo info = info_of<Binary::add>("add");
  static Outs forward(Ctx&, In in, const Attrs&) { return {binary(Binary::add, in[0], in[1])}; }
  static Grads backward(Ctx& c, GradsOut gy) {
    return {c.needs(0) ? raw::sum_to_shape(gy[0], c.shape_of(0)) : Tensor(),
            c.needs(1) ? raw::sum_to_shape(gy[0], c.shape_of(1)) : Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) { return binary_cost(in, dtype); }
};

struct Sub {
  struct Attrs {};
  static constexpr OpInfo info = info_of<Binary::sub>("sub");
  static Outs forward(Ctx&, In in, const Attrs&) { return {binary(Binary::sub, in[0], in[1])}; }
  static Grads backward(Ctx& c, GradsOut gy) {
    return {c.needs(0) ? raw::sum_to_shape(gy[0], c.shape_of(0)) : Tensor(),
            c.needs(1) ? raw::sum_to_shape(scaled(gy[0], -1, 0), c.shape_of(1)) : Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) { return binary_cost(in, dtype); }
};

struct Mul {
  struct Attrs {};
  static constexpr OpInfo info = info_of<Binary::mul>("mul");
  static Outs forward(Ctx& c, In in, const Attrs&) {
    c.save({c.needs(1) ? in[0] : Tensor(), c.needs(0) ? in[1] : Tensor()});
    return {binary(Binary::mul, in[0], in[1])};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    return {c.needs(0) ? raw::sum_to_shape(binary(Binary::mul, gy[0], c.saved(1)), c.shape_of(0)) : Tensor(),
            c.needs(1) ? raw::sum_to_shape(binary(Binary::mul, gy[0], c.saved(0)), c.shape_of(1)) : Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) { return binary_cost(in, dtype); }
};

/// y = a / b; ga = gy / b, gb = -gy y / b
struct Div {
  struct Attrs {};
  static constexpr OpInfo info = info_of<Binary::div>("div");
  static Outs forward(Ctx& c, In in, const Attrs&) {
    Tensor y = binary(Binary::div, in[0], in[1]);
    c.save({in[1], c.needs(1) ? y : Tensor()});
    return {y};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor quotient = binary(Binary::div, gy[0], c.saved(0));
    Grads g{c.needs(0) ? raw::sum_to_shape(quotient, c.shape_of(0)) : Tensor(), Tensor()};
    if (c.needs(1))
      g[1] = raw::sum_to_shape(scaled(binary(Binary::mul, quotient, c.saved(1)), -1, 0), c.shape_of(1));
    return g;
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) { return binary_cost(in, dtype); }
};

struct ScaleShift {
  struct Attrs {
    double factor = 1, shift = 0;
  };
  static constexpr OpInfo info{.name = "scale_shift", .contract = "x: ... -> ...", .layout = Layout::strided};
  static Outs forward(Ctx&, In in, const Attrs& a) { return {scaled(in[0], a.factor, a.shift)}; }
  static Grads backward(Ctx& c, GradsOut gy) { return {scaled(gy[0], c.attrs<Attrs>().factor, 0)}; }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {2 * double(in[0].numel()), 2 * bytes_of(in, dtype)};
  }
};

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) { return apply<Add>({a, b})[0]; }
Tensor sub(const Tensor& a, const Tensor& b) { return apply<Sub>({a, b})[0]; }
Tensor mul(const Tensor& a, const Tensor& b) { return apply<Mul>({a, b})[0]; }
Tensor div(const Tensor& a, const Tensor& b) { return apply<Div>({a, b})[0]; }
Tensor add_scalar(const Tensor& x, double value) { return apply<ScaleShift>({x}, {1, value})[0]; }
Tensor mul_scalar(const Tensor& x, double factor) { return apply<ScaleShift>({x}, {factor, 0})[0]; }

OCCAM_REGISTER(elementwise, Add, Sub, Mul, Div, ScaleShift);

}  // namespace occam
