#include "ops/reduce/op.h"

#include <algorithm>
#include <vector>

#include "ops/elementwise/op.h"
#include "ops/op.h"
#include "ops/reduce/add_rows.h"
#include "ops/reduce/kernel.h"

namespace occam {
namespace {

/// A reduction as [outer, n, inner] of a contiguous tensor.
struct Split {
  Tensor x;
  int64_t outer = 1, n = 1, inner = 1;
};

/// Brings the reduced axes side by side (copying only when they are not) and folds the shape to three axes.
Split split_axes(const Tensor& x, std::vector<int> axes) {
  std::sort(axes.begin(), axes.end());
  Split s;
  bool adjacent = axes.empty() || axes.back() - axes.front() + 1 == int(axes.size());
  if (adjacent) {
    s.x = raw::contiguous(x);
    int first = axes.empty() ? x.rank() : axes.front(), last = axes.empty() ? x.rank() - 1 : axes.back();
    for (int i = 0; i < x.rank(); ++i) (i < first ? s.outer : i <= last ? s.n : s.inner) *= x.shape()[i];
    return s;
  }
  std::vector<int> order;
  for (int i = 0; i < x.rank(); ++i)
    if (std::find(axes.begin(), axes.end(), i) == axes.end()) order.push_back(i), s.outer *= x.shape()[i];
  for (int axis : axes) order.push_back(axis), s.n *= x.shape()[axis];
  s.x = raw::contiguous(raw::permute(x, order));
  return s;
}

/// Sums in f64 in an order that does not depend on the number of threads.
template <class T>
void sum_cpu(const T* x, T* y, int64_t outer, int64_t n, int64_t inner) {
  if (inner == 1) {
#pragma omp parallel for if (outer * n > 16384)
    for (int64_t o = 0; o < outer; ++o) {
      double total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t k = 0; k < n; ++k) total += x[o * n + k];
      y[o] = T(total);
    }
    return;
  }
  constexpr int64_t kTile = 64, kPart = 512;  // columns and rows of a sum that one thread makes
  const int64_t tiles = (inner + kTile - 1) / kTile, parts = std::max<int64_t>((n + kPart - 1) / kPart, 1);
  std::vector<double> sums(size_t(outer * parts * inner), 0.0);
#pragma omp parallel for if (outer * n * inner > 16384)
  for (int64_t at = 0; at < outer * parts * tiles; ++at) {
    const int64_t o = at / (parts * tiles), first = at / tiles % parts * kPart, start = at % tiles * kTile;
    add_rows(x + (o * n + first) * inner + start, std::min(kPart, n - first), inner,
             std::min(kTile, inner - start), sums.data() + at / tiles * inner + start);
  }
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t i = 0; i < inner; ++i) {
      double total = 0;
      for (int64_t p = 0; p < parts; ++p) total += sums[size_t((o * parts + p) * inner + i)];
      y[o * inner + i] = T(total);
    }
}

Tensor sum_axes(const Tensor& x, const std::vector<int>& axes, const Shape& out, DType dtype) {
  Split s = split_axes(x, axes);
  if (x.is_cpu()) {
    Tensor source = is_floating(x.dtype()) && x.dtype() != DType::f64 ? raw::to(s.x, DType::f32) : s.x;
    Tensor y = empty(out, options_of(source));
    dispatch_float(source.dtype(),
                   [&]<class T>() { sum_cpu(source.data<T>(), y.data<T>(), s.outer, s.n, s.inner); });
    return raw::to(y, dtype);
  }
  Tensor y = empty(out, {dtype, x.device()});
  OCCAM_ON_CUDA({
    void* stream = current_stream(x.device()).handle;
    auto run = [&]<class T, class Y>(const T* from, Y* to) {
      Tensor scratch =
          empty({kernels::reduce_scratch(from, s.outer, s.n, s.inner)}, {DType::f32, x.device()});
      kernels::reduce_sum(from, to, s.outer, s.n, s.inner, scratch.data<float>(), stream);
    };
    if (x.dtype() == DType::f32)
      run(s.x.data<float>(), y.data<float>());
    else if (dtype == DType::f32)
      run(s.x.data<bf16>(), y.data<float>());
    else
      run(s.x.data<bf16>(), y.data<bf16>());
  });
  return y;
}

std::vector<int> wrap_axes(const Tensor& x, const std::vector<int>& axes, const char* op) {
  std::vector<int> wrapped;
  for (int axis : axes) {
    int a = x.shape().wrap(axis);
    OCCAM_CHECK(std::find(wrapped.begin(), wrapped.end(), a) == wrapped.end(), ErrorKind::shape,
                "{}: axis {} of {} is named twice", op, axis, x.shape().str());
    wrapped.push_back(a);
  }
  if (axes.empty())
    for (int i = 0; i < x.rank(); ++i) wrapped.push_back(i);
  return wrapped;
}

Shape reduced_shape(const Shape& shape, const std::vector<int>& axes, bool keepdim) {
  Shape result;
  for (int i = 0; i < shape.rank(); ++i) {
    bool gone = std::find(axes.begin(), axes.end(), i) != axes.end();
    if (!gone || keepdim) result.push_back(gone ? 1 : shape[i]);
  }
  return result;
}

struct Sum {
  struct Attrs {
    std::vector<int> axes;  // in [0, rank)
    bool keepdim = false;
  };
  static constexpr OpInfo info{.name = "sum", .contract = "x: * -> *", .layout = Layout::strided};
  static Outs forward(Ctx&, In in, const Attrs& a) {
    return {sum_axes(in[0], a.axes, reduced_shape(in[0].shape(), a.axes, a.keepdim), in[0].dtype())};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    const Shape& shape = c.shape_of(0);
    Tensor kept = raw::reshape(gy[0], reduced_shape(shape, c.attrs<Attrs>().axes, true));
    return {raw::expand(kept, shape)};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {double(in[0].numel()), bytes_of(in, dtype)};
  }
};

struct Max {
  struct Attrs {
    int axis = 0;
    bool keepdim = false;
  };
  static constexpr OpInfo info{.name = "max", .contract = "x: * -> *"};
  static Outs forward(Ctx& c, In in, const Attrs& a) {
    Split s = split_axes(in[0], {a.axis});
    Shape out = reduced_shape(in[0].shape(), {a.axis}, a.keepdim);
    OCCAM_CHECK(s.n > 0, ErrorKind::shape, "max: axis {} of {} is empty", a.axis, in[0].shape().str());
    Tensor y = empty(out, options_of(in[0])), index = empty(out, {DType::i64, in[0].device()});
    if (in[0].is_cuda()) {
      dispatch_cuda(y.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::reduce_max(s.x.data<T>(), y.data<T>(), index.data<int64_t>(), s.outer, s.n,
                                          s.inner, current_stream(y.device()).handle));
      });
    } else {
      dispatch_float(y.dtype(), [&]<class T>() {
        for (int64_t c2 = 0; c2 < s.outer * s.inner; ++c2) {
          const T* p = s.x.data<T>() + c2 / s.inner * s.n * s.inner + c2 % s.inner;
          int64_t best = 0;
          for (int64_t k = 1; k < s.n; ++k)
            if (p[k * s.inner] > p[best * s.inner] ||
                (p[k * s.inner] != p[k * s.inner] && p[best * s.inner] == p[best * s.inner]))
              best = k;
          y.data<T>()[c2] = p[best * s.inner];
          index.data<int64_t>()[c2] = best;
        }
      });
    }
    c.save({index});
    return {y};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor index = c.saved(0), gx = empty(c.shape_of(0), options_of(gy[0]));
    Split s = split_axes(gx, {c.attrs<Attrs>().axis});
    if (gx.is_cuda()) {
      dispatch_cuda(gx.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::reduce_max_bwd(gy[0].data<T>(), index.data<int64_t>(), gx.data<T>(), s.outer,
                                              s.n, s.inner, current_stream(gx.device()).handle));
      });
    } else {
      gx.zero_();
      dispatch_float(gx.dtype(), [&]<class T>() {
        for (int64_t c2 = 0; c2 < s.outer * s.inner; ++c2)
          gx.data<T>()[(c2 / s.inner * s.n + index.data<int64_t>()[c2]) * s.inner + c2 % s.inner] =
              gy[0].data<T>()[c2];
      });
    }
    return {gx};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {double(in[0].numel()), bytes_of(in, dtype)};
  }
};

}  // namespace

Tensor sum(const Tensor& x, const std::vector<int>& axes, bool keepdim) {
  return apply<Sum>({x}, {wrap_axes(x, axes, "sum"), keepdim})[0];
}

Tensor mean(const Tensor& x, const std::vector<int>& axes, bool keepdim) {
  double count = 1;
  for (int axis : wrap_axes(x, axes, "mean")) count *= double(x.shape()[axis]);
  return mul_scalar(sum(x, axes, keepdim), 1 / count);
}

Tensor max(const Tensor& x, int axis, bool keepdim) {
  return apply<Max>({x}, {x.shape().wrap(axis), keepdim})[0];
}

namespace raw {
Tensor sum_to_shape(const Tensor& t, const Shape& shape, DType dtype) {
  if (t.shape() == shape) return raw::to(t, dtype);
  std::vector<int> axes;
  int shift = t.rank() - shape.rank();
  OCCAM_CHECK(shift >= 0 && broadcast_shapes(t.shape(), shape) == t.shape(), ErrorKind::internal,
              "sum_to_shape: {} does not come from {}", t.shape().str(), shape.str());
  for (int i = 0; i < t.rank(); ++i)
    if (i < shift || (shape[i - shift] == 1 && t.shape()[i] != 1)) axes.push_back(i);
  return sum_axes(t, axes, shape, dtype);
}
}  // namespace raw

OCCAM_REGISTER(reduce, Sum, Max);

}  // namespace occam
