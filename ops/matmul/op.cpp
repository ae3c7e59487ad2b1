#include "ops/matmul/op.h"

#include "ops/blas.h"
#include "ops/op.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

/// A stack of contiguous matrices, the transpose of each when `trans`.
struct Stack {
  Tensor t;
  bool trans;

  int64_t rows() const { return t.size(trans ? -1 : -2); }
  int64_t columns() const { return t.size(trans ? -2 : -1); }
};

Shape batch_of(const Shape& s) { return Shape(std::span(s.begin(), size_t(s.rank() - 2))); }

Shape with_matrix(Shape batch, int64_t rows, int64_t columns) {
  batch.push_back(rows);
  batch.push_back(columns);
  return batch;
}

/// Batch axes of a product: strides in elements, 0 where an operand is broadcast. Neighbours that both
/// operands walk as one are merged and axes of size 1 are gone.
struct BatchWalk {
  int rank = 0;
  int64_t sizes[kMaxDims], a[kMaxDims], b[kMaxDims];
};

BatchWalk walk_of(const Tensor& a, const Tensor& b, const Shape& batch) {
  Tensor x = raw::expand(a, with_matrix(batch, a.size(-2), a.size(-1)));
  Tensor y = raw::expand(b, with_matrix(batch, b.size(-2), b.size(-1)));
  BatchWalk w;
  for (int i = 0; i < batch.rank(); ++i) {
    if (batch[i] == 1) continue;
    int64_t stride_a = x.strides()[i], stride_b = y.strides()[i];
    int last = w.rank - 1;
    if (last >= 0 && w.a[last] == stride_a * batch[i] && w.b[last] == stride_b * batch[i])
      w.sizes[last] *= batch[i], w.a[last] = stride_a, w.b[last] = stride_b;
    else
      w.sizes[w.rank] = batch[i], w.a[w.rank] = stride_a, w.b[w.rank++] = stride_b;
  }
  return w;
}

/// d = a b for every matrix of `batch`, to which the batch axes of both broadcast.
Tensor product(const Stack& a, const Stack& b, const Shape& batch, DType dtype) {
  Product p{.device = a.t.device(), .dtype_ab = a.t.dtype(), .dtype_d = dtype};
  p.trans_a = a.trans, p.trans_b = b.trans;
  p.m = a.rows(), p.n = b.columns(), p.k = a.columns();
  Tensor d = empty(with_matrix(batch, p.m, p.n), {dtype, a.t.device()});
  if (d.numel() == 0) return d;
  if (p.k == 0) return d.zero_();

  BatchWalk w = walk_of(a.t, b.t, batch);
  int last = w.rank - 1;
  if (last >= 0) {
    bool stacked_rows = w.b[last] == 0 && !a.trans && w.a[last] == p.m * p.k;
    if (stacked_rows)  // one matrix b for the whole axis: the matrices of a are one tall matrix
      p.m *= w.sizes[last];
    else
      p.batch = w.sizes[last], p.stride_a = w.a[last], p.stride_b = w.b[last], p.stride_d = p.m * p.n;
    --w.rank;
  }
  int64_t step = p.batch * p.m * p.n, calls = d.numel() / step;
  auto* x = static_cast<const char*>(a.t.data_ptr());
  auto* y = static_cast<const char*>(b.t.data_ptr());
  auto* out = static_cast<char*>(d.data_ptr());
  int64_t bytes_in = int64_t(size_of(p.dtype_ab)), bytes_out = int64_t(size_of(dtype));
  for (int64_t call = 0; call < calls; ++call) {
    int64_t rest = call, at_a = 0, at_b = 0;
    for (int axis = w.rank - 1; axis >= 0; --axis) {
      at_a += rest % w.sizes[axis] * w.a[axis];
      at_b += rest % w.sizes[axis] * w.b[axis];
      rest /= w.sizes[axis];
    }
    matrix_product(p, x + at_a * bytes_in, y + at_b * bytes_in, out + call * step * bytes_out);
  }
  return d;
}

/// The product summed over the batch axes that `shape` (of a gradient) does not have. `dtype` is the inputs'
/// or f32.
Tensor product_summed_to(const Shape& shape, Stack a, Stack b, const Shape& batch, DType dtype) {
  bool same_batch = batch_of(a.t.shape()) == batch && batch_of(b.t.shape()) == batch;
  if (shape.numel() == a.rows() * b.columns() && same_batch && a.trans && !b.trans && batch.numel() > 0) {
    // Summing a^T b over the batch is one product of the stacked rows: the gradient of shared weights.
    int64_t rows = batch.numel() * a.columns();
    Stack tall{raw::reshape(a.t, {rows, a.rows()}), true},
        tall_b{raw::reshape(b.t, {rows, b.columns()}), false};
    return raw::reshape(product(tall, tall_b, {}, dtype), shape);
  }
  bool broadcast = !(batch_of(shape) == batch);
  bool half = a.t.dtype() == DType::bf16 || a.t.dtype() == DType::f16;
  Tensor all = product(a, b, batch, broadcast && half ? DType::f32 : dtype);
  return broadcast ? raw::to(raw::sum_to_shape(all, shape), dtype) : all;
}

struct Matmul {
  struct Attrs {
    bool transpose_a = false, transpose_b = false;
  };
  static constexpr OpInfo info{.name = "matmul", .contract = "a: *, b: * -> *", .bound = Bound::compute};

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    Stack a{in[0], attrs.transpose_a}, b{in[1], attrs.transpose_b};
    c.save({c.needs(1) ? in[0] : Tensor(), c.needs(0) ? in[1] : Tensor()});
    return {product(a, b, broadcast_shapes(batch_of(in[0].shape()), batch_of(in[1].shape())), in[0].dtype())};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    const Attrs& attrs = c.attrs<Attrs>();
    const Shape &sa = c.shape_of(0), &sb = c.shape_of(1);
    bool ta = attrs.transpose_a, tb = attrs.transpose_b;
    Tensor g = gy[0];
    Shape batch = batch_of(g.shape());
    Grads grads(2);
    if (c.needs(0)) {  // g b^T; stored transposed, b g^T
      Tensor b = c.saved(1);
      grads[0] = ta ? product_summed_to(sa, {b, tb}, {g, true}, batch, c.grad_dtype_of(0))
                    : product_summed_to(sa, {g, false}, {b, !tb}, batch, c.grad_dtype_of(0));
    }
    if (c.needs(1)) {  // a^T g; stored transposed, g^T a
      Tensor a = c.saved(0);
      grads[1] = tb ? product_summed_to(sb, {g, true}, {a, ta}, batch, c.grad_dtype_of(1))
                    : product_summed_to(sb, {a, !ta}, {g, false}, batch, c.grad_dtype_of(1));
    }
    return grads;
  }

  static Cost cost(Shapes in, DType dtype, const Attrs& a) {
    double m = double(in[0][a.transpose_a ? -1 : -2]), k = double(in[0][a.transpose_a ? -2 : -1]);
    double n = double(in[1][a.transpose_b ? -2 : -1]);
    double out = double(broadcast_shapes(batch_of(in[0]), batch_of(in[1])).numel()) * m * n;
    return {2 * out * k, bytes_of(in, dtype) + out * double(size_of(dtype))};
  }
};

/// "a [2,5,3] transposed"
std::string described(const char* name, const Tensor& t, bool transposed) {
  return fmt::format("{} {}{}", name, t.shape().str(), transposed ? " transposed" : "");
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b) {
  for (const Tensor* t : {&a, &b})
    OCCAM_CHECK(t->rank() >= 2, ErrorKind::shape, "matmul: {} {} has fewer than two axes; reshape a vector",
                t == &a ? "a" : "b", t->shape().str());
  int64_t inner_a = a.size(transpose_a ? -2 : -1), inner_b = b.size(transpose_b ? -1 : -2);
  OCCAM_CHECK(inner_a == inner_b, ErrorKind::shape, "matmul: the inner size is {} in {} but {} in {}",
              inner_a, described("a", a, transpose_a), inner_b, described("b", b, transpose_b));
  Shape sa = batch_of(a.shape()), sb = batch_of(b.shape());
  for (int i = 1; i <= std::min(sa.rank(), sb.rank()); ++i)
    OCCAM_CHECK(sa[-i] == sb[-i] || sa[-i] == 1 || sb[-i] == 1, ErrorKind::shape,
                "matmul: batch axes {} of a {} and {} of b {} do not broadcast", sa.str(), a.shape().str(),
                sb.str(), b.shape().str());
  return apply<Matmul>({a, b}, {transpose_a, transpose_b})[0];
}

OCCAM_REGISTER(matmul, Matmul);

}  // namespace occam
