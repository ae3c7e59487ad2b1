#include "ops/cast/op.h"

#include "ops/op.h"

namespace occam {
namespace {

struct CastTo {
  struct Attrs {
    DType dtype = DType::f32;
  };
  static constexpr OpInfo info{.name = "cast", .contract = "x: ... -> ...", .cast = Cast::any};
  static Outs forward(Ctx&, In in, const Attrs& a) {
    return {in[0].dtype() == a.dtype ? raw::clone(in[0]) : raw::to(in[0], a.dtype)};
  }
  static Grads backward(Ctx& c, GradsOut gy) { return {raw::to(gy[0], c.dtype_of(0))}; }
  static Cost cost(Shapes in, DType dtype, const Attrs& a) {
    return {0, bytes_of(in, dtype) + bytes_of(in, a.dtype)};
  }
};

}  // namespace

Tensor cast(const Tensor& x, DType dtype) {
  OCCAM_CHECK(is_floating(x.dtype()) && is_floating(dtype), ErrorKind::shape,
              "cast: {} to {}; only floating types are differentiable", name_of(x.dtype()), name_of(dtype));
  return x.dtype() == dtype ? x : apply<CastTo>({x}, {dtype})[0];
}

OCCAM_REGISTER(cast, CastTo);

}  // namespace occam
