#include "ops/slice/op.h"

#include "ops/op.h"
#include "ops/view/op.h"

namespace occam {
namespace {

struct Slice {
  struct Attrs {
    int axis = 0;
    int64_t start = 0, length = 0, step = 1;
  };
  static constexpr OpInfo info{.name = "slice", .contract = "x: * -> *", .layout = Layout::strided};
  static Outs forward(Ctx&, In in, const Attrs& a) {
    return {raw::slice(in[0], a.axis, a.start, a.length, a.step)};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    const Attrs& a = c.attrs<Attrs>();
    Tensor gx = zeros(c.shape_of(0), options_of(gy[0]));
    raw::slice(gx, a.axis, a.start, a.length, a.step).copy_(gy[0]);
    return {gx};
  }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }
};

}  // namespace

Tensor slice(const Tensor& x, int axis, int64_t start, int64_t length, int64_t step) {
  return apply<Slice>({x}, {x.shape().wrap(axis), start < 0 ? start + x.size(axis) : start, length, step})[0];
}

Tensor select(const Tensor& x, int axis, int64_t index) {
  return reshape(slice(x, axis, index, 1), x.shape().without(axis));
}

OCCAM_REGISTER(slice, Slice);

}  // namespace occam
