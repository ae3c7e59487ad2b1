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

struct Split {
  struct Attrs {
    int axis = 0;
    std::vector<int64_t> sizes;
  };
  static constexpr OpInfo info{.name = "split", .contract = "x: * -> *, *, *", .layout = Layout::strided};
  static Outs forward(Ctx&, In in, const Attrs& a) {
    Outs parts(3);
    int64_t start = 0;
    for (size_t i = 0; i < a.sizes.size(); start += a.sizes[i++])
      parts[i] = raw::slice(in[0], a.axis, start, a.sizes[i]);
    return parts;
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    const Attrs& a = c.attrs<Attrs>();
    const Tensor& any = gy[0] ? gy[0] : gy[1] ? gy[1] : gy[2];
    Tensor gx = empty(c.shape_of(0), options_of(any));
    int64_t start = 0;
    for (size_t i = 0; i < a.sizes.size(); start += a.sizes[i++]) {
      Tensor part = raw::slice(gx, a.axis, start, a.sizes[i]);
      gy[i] ? part.copy_(gy[i]) : part.zero_();
    }
    return {gx};
  }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }
};

}  // namespace

Tensor slice(const Tensor& x, int axis, int64_t start, int64_t length, int64_t step) {
  return apply<Slice>({x}, {x.shape().wrap(axis), start < 0 ? start + x.size(axis) : start, length, step})[0];
}

std::vector<Tensor> split(const Tensor& x, int axis, const std::vector<int64_t>& sizes) {
  axis = x.shape().wrap(axis);
  int64_t sum = 0;
  for (int64_t size : sizes) sum += size;
  OCCAM_CHECK((sizes.size() == 2 || sizes.size() == 3) && sum == x.size(axis), ErrorKind::shape,
              "split: {} parts of {} elements together, of axis {} of x {}", sizes.size(), sum, axis,
              x.shape().str());
  Outs parts = apply<Split>({x}, {axis, sizes});
  parts.resize(sizes.size());
  return parts;
}

Tensor select(const Tensor& x, int axis, int64_t index) {
  return reshape(slice(x, axis, index, 1), x.shape().without(axis));
}

OCCAM_REGISTER(slice, Slice, Split);

}  // namespace occam
