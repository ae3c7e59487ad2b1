#include "ops/view/op.h"

#include <numeric>
#include <utility>

#include "ops/op.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

struct Reshape {
  struct Attrs {
    Shape shape;
  };
  static constexpr OpInfo info{.name = "reshape", .contract = "x: * -> *", .layout = Layout::strided};
  static Outs forward(Ctx&, In in, const Attrs& a) { return {raw::reshape(in[0], a.shape)}; }
  static Grads backward(Ctx& c, GradsOut gy) { return {raw::reshape(gy[0], c.shape_of(0))}; }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }
};

struct Permute {
  struct Attrs {
    std::vector<int> axes;
  };
  static constexpr OpInfo info{.name = "permute", .contract = "x: * -> *", .layout = Layout::strided};
  static Outs forward(Ctx&, In in, const Attrs& a) { return {raw::permute(in[0], a.axes)}; }
  static Grads backward(Ctx& c, GradsOut gy) {
    const std::vector<int>& axes = c.attrs<Attrs>().axes;
    std::vector<int> inverse(axes.size());
    for (size_t i = 0; i < axes.size(); ++i) inverse[size_t(c.shape_of(0).wrap(axes[i]))] = int(i);
    return {raw::permute(gy[0], inverse)};
  }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }
};

struct Expand {
  struct Attrs {
    Shape shape;
  };
  static constexpr OpInfo info{.name = "expand", .contract = "x: * -> *", .layout = Layout::strided};
  static Outs forward(Ctx&, In in, const Attrs& a) { return {raw::expand(in[0], a.shape)}; }
  static Grads backward(Ctx& c, GradsOut gy) {
    return {raw::sum_to_shape(gy[0], c.shape_of(0), c.grad_dtype_of(0))};
  }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }
};

}  // namespace

Tensor reshape(const Tensor& x, const Shape& shape) { return apply<Reshape>({x}, {shape})[0]; }
Tensor permute(const Tensor& x, const std::vector<int>& axes) { return apply<Permute>({x}, {axes})[0]; }
Tensor transpose(const Tensor& x, int a, int b) {
  std::vector<int> axes(size_t(x.rank()));
  std::iota(axes.begin(), axes.end(), 0);
  std::swap(axes[size_t(x.shape().wrap(a))], axes[size_t(x.shape().wrap(b))]);
  return permute(x, axes);
}
Tensor expand(const Tensor& x, const Shape& shape) { return apply<Expand>({x}, {shape})[0]; }

OCCAM_REGISTER(view, Reshape, Permute, Expand);

}  // namespace occam
