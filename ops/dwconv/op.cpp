#include "ops/dwconv/op.h"

#include "ops/dwconv/kernel.h"
#include "ops/op.h"

namespace occam {
namespace {

struct Dwconv {
  struct Attrs {
    int64_t grid_h = 0, grid_w = 0;
  };
  static constexpr OpInfo info{
      .name = "dwconv",
      .contract = "x: b t c, w: i j c, prefix_w: 2 c, bias: c -> b t c",
      .hint = "tokens are the prefix (class, distillation), then the patches row by row"};

  static kernels::DwconvShape sizes(const Shape& x, const Shape& w, const Attrs& a) {
    return {x[0], a.grid_h, a.grid_w, x[1] - a.grid_h * a.grid_w, x[2], w[0], w[1]};
  }

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    const Tensor &x = in[0], &w = in[1];
    OCCAM_CHECK(a.grid_h >= 0 && a.grid_w >= 0 && x.size(1) >= a.grid_h * a.grid_w, ErrorKind::shape,
                "dwconv: {} tokens hold no grid of {} x {} patches", x.size(1), a.grid_h, a.grid_w);
    OCCAM_CHECK(w.size(0) % 2 == 1 && w.size(1) % 2 == 1, ErrorKind::shape,
                "dwconv: the kernel {} x {} has no middle; its sides must be odd", w.size(0), w.size(1));
    const kernels::DwconvShape s = sizes(x.shape(), w.shape(), a);
    Tensor y = empty_like(x);
    Tensor mean = empty({s.b, s.c}, {x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device()});
    auto fill = [&]<class T, class M>(kernels::DwconvForward<T, M> k) {
      k.s = s;
      k.x = x.data<T>(), k.w = w.data<T>(), k.prefix_w = in[2].data<T>(), k.bias = in[3].data<T>();
      k.y = y.data<T>(), k.mean = mean.data<M>();
      return k;
    };
    if (x.is_cuda())
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA({
          auto k = fill(kernels::DwconvForward<T, float>{});
          Tensor scratch = empty({kernels::dwconv_scratch(s, false)}, options_of(mean));
          k.scratch = scratch.data<float>();
          kernels::dwconv_fwd(k, current_stream(x.device()).handle);
        });
      });
    else
      dispatch_float(x.dtype(),
                     [&]<class T>() { kernels::dwconv_fwd_cpu(fill(kernels::DwconvForward<T, T>{})); });
    const bool params = c.needs(1) || c.needs(2) || c.needs(3);
    c.save({params ? x : Tensor(), w, in[2], params ? mean : Tensor()});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    const Tensor &g = gy[0], x = c.saved(0), w = c.saved(1), prefix_w = c.saved(2), mean = c.saved(3);
    const kernels::DwconvShape s = sizes(c.shape_of(0), w.shape(), c.attrs<Attrs>());
    const TensorOptions wide{g.dtype() == DType::f64 ? DType::f64 : DType::f32, g.device()};
    Grads grads(4);
    if (c.needs(0)) grads[0] = empty_like(g);
    if (x) {
      grads[1] = empty(w.shape(), wide);
      grads[2] = empty(prefix_w.shape(), wide);
      grads[3] = empty({s.c}, wide);
    }
    auto fill = [&]<class T, class M>(kernels::DwconvBackward<T, M> k) {
      k.s = s;
      k.w = w.data<T>(), k.prefix_w = prefix_w.data<T>(), k.gy = g.data<T>();
      if (grads[0]) k.gx = grads[0].data<T>();
      if (!x) return k;
      k.x = x.data<T>(), k.mean = mean.data<M>();
      k.gw = grads[1].data<M>(), k.gprefix = grads[2].data<M>(), k.gbias = grads[3].data<M>();
      return k;
    };
    if (g.is_cuda())
      dispatch_cuda(g.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA({
          auto k = fill(kernels::DwconvBackward<T, float>{});
          Tensor scratch = empty({kernels::dwconv_scratch(s, true)}, wide);
          k.scratch = scratch.data<float>();
          kernels::dwconv_bwd(k, current_stream(g.device()).handle);
        });
      });
    else
      dispatch_float(g.dtype(),
                     [&]<class T>() { kernels::dwconv_bwd_cpu(fill(kernels::DwconvBackward<T, T>{})); });
    for (size_t i = 1; i < 4; ++i)
      if (!c.needs(int(i))) grads[i] = {};
    return grads;
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    const double outputs = double(in[0].numel());
    return {2 * outputs * double(in[1][0] * in[1][1]),
            bytes_of(in, dtype) + outputs * double(size_of(dtype))};
  }
};

}  // namespace

Tensor dwconv(const Tensor& x, const Tensor& w, const Tensor& prefix_w, const Tensor& bias, int64_t grid_h,
              int64_t grid_w) {
  return apply<Dwconv>({x, w, prefix_w, bias}, {grid_h, grid_w})[0];
}

OCCAM_REGISTER(dwconv, Dwconv);

}  // namespace occam
