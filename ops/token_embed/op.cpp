#include "ops/token_embed/op.h"

#include "ops/op.h"
#include "ops/reduce/op.h"
#include "ops/token_embed/kernel.h"

namespace occam {
namespace {

struct TokenEmbed {
  struct Attrs {};
  static constexpr OpInfo info{.name = "token_embed",
                               .contract = "x: b n c, prefix: p c, places: t c -> b t c"};

  static Outs forward(Ctx&, In in, const Attrs&) {
    const Tensor &x = in[0], &prefix = in[1], &places = in[2];
    const int64_t b = x.size(0), n = x.size(1), c = x.size(2), p = prefix.size(0), t = places.size(0);
    OCCAM_CHECK(p + n == t, ErrorKind::shape, "token_embed: {} tokens behind {} others for {} places", n, p,
                t);
    Tensor y = empty({b, t, c}, options_of(x));
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::token_embed(x.data<T>(), prefix.data<T>(), places.data<T>(), y.data<T>(), b, p,
                                           n, c, current_stream(x.device()).handle));
      });
      return {y};
    }
    dispatch_float(x.dtype(), [&]<class T>() {
      for (int64_t i = 0; i < b; ++i)
        for (int64_t j = 0; j < t; ++j) {
          const T* from = j < p ? prefix.data<T>() + j * c : x.data<T>() + (i * n + j - p) * c;
          const T* place = places.data<T>() + j * c;
          T* to = y.data<T>() + (i * t + j) * c;
          for (int64_t k = 0; k < c; ++k) to[k] = from[k] + place[k];
        }
    });
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    const int64_t p = c.shape_of(1)[0];
    const bool wide =
        (c.needs(1) && c.grad_dtype_of(1) == DType::f32) || (c.needs(2) && c.grad_dtype_of(2) == DType::f32);
    Tensor sum;  // over the images
    if (c.needs(1) || c.needs(2))
      sum = raw::sum_to_shape(gy[0], c.shape_of(2), wide ? DType::f32 : gy[0].dtype());
    return {c.needs(0) ? raw::slice(gy[0], 1, p, c.shape_of(0)[1]) : Tensor(),
            c.needs(1) ? raw::slice(sum, 0, 0, p) : Tensor(), c.needs(2) ? sum : Tensor()};
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    const double y = double(in[0][0] * in[2].numel());
    return {y, bytes_of(in, dtype) + y * double(size_of(dtype))};
  }
};

}  // namespace

Tensor token_embed(const Tensor& x, const Tensor& prefix, const Tensor& places) {
  return apply<TokenEmbed>({x, prefix, places})[0];
}

OCCAM_REGISTER(token_embed, TokenEmbed);

}  // namespace occam
