#include "ops/gather/op.h"

#include "ops/gather/plan.h"
#include "ops/op.h"
#include "ops/scatter/op.h"

namespace occam {

kernels::IndexPlan plan_indices(const char* op, const Shape& shape, int axis, const Tensor& indices) {
  OCCAM_CHECK(indices.dtype() == DType::i64, ErrorKind::shape, "{}: indices are {}, expected i64", op,
              name_of(indices.dtype()));
  kernels::IndexPlan p;
  p.each = indices.rank() != 1;
  OCCAM_CHECK(!p.each || (indices.rank() == shape.rank() && indices.shape().with(axis, shape[axis]) == shape),
              ErrorKind::shape,
              "{}: indices {} beside x {}; they have one axis, or x's sizes except on axis {}", op,
              indices.shape().str(), shape.str(), axis);
  p.size = shape[axis], p.n = indices.size(p.each ? axis : 0);
  for (int i = 0; i < axis; ++i) p.outer *= shape[i];
  for (int i = axis + 1; i < shape.rank(); ++i) p.inner *= shape[i];
  if (indices.is_cpu()) {
    const auto* index = indices.data<int64_t>();
    for (int64_t i = 0, count = indices.numel(); i < count; ++i)
      OCCAM_CHECK(index[i] >= 0 && index[i] < p.size, ErrorKind::shape,
                  "{}: index {} at place {} of indices {} is outside [0, {}), axis {} of x {}", op, index[i],
                  i, indices.shape().str(), p.size, axis, shape.str());
  }
  return p;
}

namespace {

Shape gathered_shape(const Shape& x, int axis, const Tensor& indices) {
  return x.with(axis, indices.size(indices.rank() == 1 ? 0 : axis));
}

/// Both functions: one index a row or one an element, by the rank of indices.
struct Gather {
  struct Attrs {
    int axis = 0;
  };
  static constexpr OpInfo info{.name = "gather", .contract = "x: *, indices: * -> *"};

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    c.save({in[1]});
    return {raw::gather(in[0], a.axis, in[1])};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor zero = zeros(c.shape_of(0), options_of(gy[0]));
    return {raw::scatter_add(zero, c.attrs<Attrs>().axis, c.saved(0), gy[0]), Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs& a) {
    Shape out = in[0].with(a.axis, in[1][in[1].rank() == 1 ? 0 : a.axis]);
    return {0, 2 * double(out.numel()) * double(size_of(dtype)) + 8 * double(in[1].numel())};
  }
};

int checked_axis(const char* op, const Tensor& x, int axis) {
  OCCAM_CHECK(x.rank() > 0, ErrorKind::shape, "{}: x has no axes", op);
  OCCAM_CHECK(is_floating(x.dtype()), ErrorKind::shape, "{}: x is {}, expected a floating type", op,
              name_of(x.dtype()));
  return x.shape().wrap(axis);
}

}  // namespace

namespace raw {
Tensor gather(const Tensor& x, int axis, const Tensor& indices) {
  kernels::IndexPlan p = plan_indices("gather", x.shape(), axis, indices);
  Tensor y = empty(gathered_shape(x.shape(), axis, indices), options_of(x));
  if (x.is_cuda()) {
    dispatch_cuda(x.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::gather(x.data<T>(), indices.data<int64_t>(), y.data<T>(), p,
                                    current_stream(x.device()).handle));
    });
    return y;
  }
  dispatch_float(x.dtype(), [&]<class T>() {
    const T* from = x.data<T>();
    const auto* index = indices.data<int64_t>();
    T* to = y.data<T>();
#pragma omp parallel for if (y.numel() > 16384)
    for (int64_t row = 0; row < p.outer * p.n; ++row) {
      int64_t o = row / p.n, k = row % p.n;
      for (int64_t i = 0; i < p.inner; ++i)
        to[row * p.inner + i] = from[(o * p.size + index[index_at(p, o, k, i)]) * p.inner + i];
    }
  });
  return y;
}
}  // namespace raw

Tensor index_select(const Tensor& x, int axis, const Tensor& indices) {
  axis = checked_axis("index_select", x, axis);
  OCCAM_CHECK(indices.rank() == 1, ErrorKind::shape, "index_select: indices are {}, expected one axis",
              indices.shape().str());
  return apply<Gather>({x, indices}, {axis})[0];
}

Tensor gather(const Tensor& x, int axis, const Tensor& indices) {
  axis = checked_axis("gather", x, axis);
  OCCAM_CHECK(indices.rank() == x.rank(), ErrorKind::shape, "gather: indices {} and x {} differ in rank",
              indices.shape().str(), x.shape().str());
  return apply<Gather>({x, indices}, {axis})[0];
}

OCCAM_REGISTER(gather, Gather);

}  // namespace occam
