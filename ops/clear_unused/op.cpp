#include "ops/clear_unused/op.h"

#include "ops/op.h"

namespace occam {
namespace {

struct ClearUnused {
  struct Attrs {};
  static constexpr OpInfo info{.name = "clear_unused", .contract = "x: n ..., offsets: s -> n ..."};

  static Tensor cleared(const Tensor& x, const Tensor& offsets) {
    Tensor y = raw::clone(x);
    clear_unused_rows(y, offsets, x.size(0));
    return y;
  }
  static Outs forward(Ctx& c, In in, const Attrs&) {
    c.save({in[1]});
    return {cleared(in[0], in[1])};
  }
  static Grads backward(Ctx& c, GradsOut gy) { return {cleared(gy[0], c.saved(0)), Tensor()}; }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {0, 2 * double(in[0].numel()) * double(size_of(dtype))};
  }
};

}  // namespace

Tensor clear_unused(const Tensor& x, const Sequences& rows) {
  if (!rows) return x;
  check_sequences("clear_unused", rows, x);
  return apply<ClearUnused>({x, rows.offsets})[0];
}

OCCAM_REGISTER(clear_unused, ClearUnused);

}  // namespace occam
