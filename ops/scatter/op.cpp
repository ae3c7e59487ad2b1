#include "ops/scatter/op.h"

#include "ops/gather/op.h"
#include "ops/gather/plan.h"
#include "ops/op.h"
#include "ops/scatter/kernel.h"

namespace occam {
namespace {

/// Threads share the columns [o, :, i] in blocks of neighbours: each place is summed by one thread, in order.
template <class T>
void scatter_cpu(const T* src, const int64_t* indices, T* y, const kernels::IndexPlan& p) {
  constexpr int64_t kTile = 64;
  int64_t tiles = (p.inner + kTile - 1) / kTile;
#pragma omp parallel for if (p.outer * p.n * p.inner > 16384)
  for (int64_t block = 0; block < p.outer * tiles; ++block) {
    int64_t o = block / tiles, first = block % tiles * kTile, last = std::min(first + kTile, p.inner);
    for (int64_t k = 0; k < p.n; ++k)
      for (int64_t i = first; i < last; ++i)
        y[(o * p.size + indices[index_at(p, o, k, i)]) * p.inner + i] += src[(o * p.n + k) * p.inner + i];
  }
}

struct ScatterAdd {
  struct Attrs {
    int axis = 0;
  };
  static constexpr OpInfo info{.name = "scatter_add", .contract = "x: *, indices: *, src: * -> *"};

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    c.save({c.needs(2) ? in[1] : Tensor()});
    return {raw::scatter_add(in[0], a.axis, in[1], in[2])};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    return {gy[0], Tensor(), c.needs(2) ? raw::gather(gy[0], c.attrs<Attrs>().axis, c.saved(0)) : Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    // x read, y written, src read; a place that is hit is read and written once more.
    double elements = 2 * double(in[0].numel()) + double(in[2].numel());
    return {double(in[2].numel()), elements * double(size_of(dtype)) + 8 * double(in[1].numel())};
  }
};

}  // namespace

namespace raw {
Tensor scatter_add(const Tensor& x, int axis, const Tensor& indices, const Tensor& src) {
  kernels::IndexPlan p = plan_indices("scatter_add", x.shape(), axis, indices);
  OCCAM_CHECK(src.shape() == x.shape().with(axis, p.n), ErrorKind::shape,
              "scatter_add: src is {}, expected {} for x {} and indices {} on axis {}", src.shape().str(),
              x.shape().with(axis, p.n).str(), x.shape().str(), indices.shape().str(), axis);
  if (x.is_cuda()) {
    Tensor sums = x.dtype() == DType::f32 ? raw::clone(x) : raw::to(x, DType::f32);
    dispatch_cuda(src.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA(kernels::scatter_add(src.data<T>(), indices.data<int64_t>(), sums.data<float>(), p,
                                         current_stream(x.device()).handle));
    });
    return raw::to(sums, x.dtype());
  }
  Tensor y = raw::clone(x);
  dispatch_float(x.dtype(),
                 [&]<class T>() { scatter_cpu(src.data<T>(), indices.data<int64_t>(), y.data<T>(), p); });
  return y;
}
}  // namespace raw

Tensor scatter_add(const Tensor& x, int axis, const Tensor& indices, const Tensor& src) {
  OCCAM_CHECK(x.rank() > 0, ErrorKind::shape, "scatter_add: x has no axes");
  return apply<ScatterAdd>({x, indices, src}, {x.shape().wrap(axis)})[0];
}

OCCAM_REGISTER(scatter, ScatterAdd);

}  // namespace occam
