#include "ops/concat/op.h"

#include "ops/op.h"

namespace occam {
namespace {

struct Concat {
  struct Attrs {
    int axis = 0;
  };
  static constexpr OpInfo info{.name = "concat", .contract = "xs*: * -> *", .layout = Layout::strided};

  static Outs forward(Ctx&, In in, const Attrs& a) {
    Shape shape = in[0].shape();
    int64_t length = 0;
    for (size_t i = 0; i < in.size(); ++i) {
      const Shape& s = in[i].shape();
      OCCAM_CHECK(s.rank() == shape.rank() && s.with(a.axis, 0) == shape.with(a.axis, 0), ErrorKind::shape,
                  "concat: xs[{}] is {}, xs[0] is {}; only axis {} may differ", i, s.str(),
                  in[0].shape().str(), a.axis);
      length += s[a.axis];
    }
    Tensor y = empty(shape.with(a.axis, length), options_of(in[0]));
    int64_t at = 0;
    for (const Tensor& x : in) {
      raw::slice(y, a.axis, at, x.size(a.axis)).copy_(x);
      at += x.size(a.axis);
    }
    return {y};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    int axis = c.attrs<Attrs>().axis;
    Grads grads(c.input_count());
    int64_t at = 0;
    for (size_t i = 0; i < c.input_count(); ++i) {
      int64_t length = c.shape_of(i)[axis];
      if (c.needs(i)) grads[i] = raw::slice(gy[0], axis, at, length);
      at += length;
    }
    return grads;
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) { return {0, 2 * bytes_of(in, dtype)}; }
};

}  // namespace

Tensor concat(const std::vector<Tensor>& xs, int axis) {
  OCCAM_CHECK(!xs.empty() && xs[0].defined(), ErrorKind::shape, "concat: nothing to join");
  return apply<Concat>(In(xs), {xs[0].shape().wrap(axis)})[0];
}

OCCAM_REGISTER(concat, Concat);

}  // namespace occam
