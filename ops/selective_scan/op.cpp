#include "ops/selective_scan/op.h"

#include "ops/op.h"
#include "ops/reduce/op.h"
#include "ops/selective_scan/kernel.h"

namespace occam {
namespace {

struct SelectiveScanOp {
  struct Attrs {
    int64_t heads;
  };
  static constexpr OpInfo info{
      .name = "selective_scan",
      .contract = "u: b t 2 c, delta: b t 2 c, a_log: 2 c n, in: b t 2 n, out: b t 2 n, skip: 2 c -> b t h o",
      .bound = Bound::compute,
      .hint = "2: the directions"};

  static kernels::SelectiveShape sizes(const Shape& u, const Shape& a_log, int64_t heads) {
    OCCAM_CHECK(heads > 0 && u[3] % heads == 0, ErrorKind::shape,
                "selective_scan: {} channels do not divide into {} heads", u[3], heads);
    OCCAM_CHECK(a_log[2] > 0 && a_log[2] <= 64, ErrorKind::shape,
                "selective_scan: {} states a channel; 1 to 64 are possible", a_log[2]);
    return {u[0], u[1], u[3], a_log[2], u[3] / heads};
  }
  template <class T>
  static kernels::SelectiveScan<T> arguments(const kernels::SelectiveShape& s, In in) {
    return {s,
            in[0].data<T>(),
            in[1].data<T>(),
            in[2].data<T>(),
            in[3].data<T>(),
            in[4].data<T>(),
            in[5].data<T>(),
            nullptr};
  }
  static Tensor floats(int64_t count, const Tensor& like) {
    return empty({count}, {DType::f32, like.device()});
  }

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    const Tensor& u = in[0];
    const kernels::SelectiveShape s = sizes(u.shape(), in[2].shape(), attrs.heads);
    Tensor y = empty({s.b, s.t, attrs.heads, 2 * s.w}, options_of(u));
    c.save({in[0], in[1], in[2], in[3], in[4], in[5]});
    if (y.numel() == 0) return {y};
    if (u.is_cuda()) {
      dispatch_cuda(u.dtype(), [&]<class T>() {
        kernels::SelectiveScan<T> a = arguments<T>(s, in);
        a.y = y.data<T>();
        OCCAM_ON_CUDA(Tensor room = floats(kernels::selective_scan_fwd_workspace(s), u);
                      kernels::selective_scan_fwd(a, room.data<float>(), current_stream(u.device()).handle));
      });
    } else {
      dispatch_float(u.dtype(), [&]<class T>() {
        kernels::SelectiveScan<T> a = arguments<T>(s, in);
        a.y = y.data<T>();
        kernels::selective_scan_fwd_cpu(a);
      });
    }
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    const std::vector<Tensor> in{c.saved(0), c.saved(1), c.saved(2), c.saved(3), c.saved(4), c.saved(5)};
    const Tensor& u = in[0];
    const kernels::SelectiveShape s = sizes(u.shape(), in[2].shape(), c.attrs<Attrs>().heads);
    Grads grads(6);
    for (size_t i : {0, 1, 3, 4}) grads[i] = empty_like(in[i]);
    Tensor parts_a, parts_skip;
    const bool is_empty = u.numel() == 0;
    auto part_tensors = [&](int64_t parts, DType dtype) {
      parts_a = empty({parts, 2, s.c, s.n}, {dtype, u.device()});
      parts_skip = empty({parts, 2, s.c}, {dtype, u.device()});
    };
    auto fill = [&]<class T, class A>(kernels::SelectiveScanBackward<T, A>& a) {
      a.forward = arguments<T>(s, in);
      a.gy = gy[0].data<T>();
      a.gu = grads[0].data<T>(), a.g_delta = grads[1].data<T>();
      a.g_in = grads[3].data<T>(), a.g_out = grads[4].data<T>();
      a.g_a = parts_a.data<A>(), a.g_skip = parts_skip.data<A>();
    };
    if (is_empty) {
      for (size_t i : {0, 1, 3, 4}) grads[i].zero_();
      part_tensors(0, u.dtype());
    } else if (u.is_cuda()) {
      OCCAM_ON_CUDA(part_tensors(kernels::selective_scan_parts(s), DType::f32));
      dispatch_cuda(u.dtype(), [&]<class T>() {
        kernels::SelectiveScanBackward<T, float> a;
        fill(a);
        OCCAM_ON_CUDA(Tensor room = floats(kernels::selective_scan_bwd_workspace(s), u);
                      kernels::selective_scan_bwd(a, room.data<float>(), current_stream(u.device()).handle));
      });
    } else {
      part_tensors(s.b, u.dtype());
      dispatch_float(u.dtype(), [&]<class T>() {
        kernels::SelectiveScanBackward<T, T> a;
        fill(a);
        kernels::selective_scan_bwd_cpu(a);
      });
    }
    auto add_up = [&](size_t i, const Tensor& parts) {
      DType dtype = c.grad_dtype_of(i);
      const Shape one = in[i].shape().rank() == 3 ? Shape{1, 2, s.c, s.n} : Shape{1, 2, s.c};
      Tensor sum = raw::sum_to_shape(parts, one, parts.dtype());
      grads[i] = raw::to(raw::reshape(sum, in[i].shape()), dtype);
    };
    if (c.needs(2)) add_up(2, parts_a);
    if (c.needs(5)) add_up(5, parts_skip);
    for (size_t i = 0; i < 6; ++i)
      if (!c.needs(i)) grads[i] = Tensor();
    return grads;
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    const double channels = double(in[0].numel());
    return {8 * channels * double(in[2][2]), bytes_of(in, dtype) + channels * double(size_of(dtype))};
  }
};

}  // namespace

Tensor selective_scan(const Tensor& u, const Tensor& delta, const Tensor& a_log, const Tensor& in,
                      const Tensor& out, const Tensor& skip, int64_t heads) {
  return apply<SelectiveScanOp>({u, delta, a_log, in, out, skip}, {heads})[0];
}

OCCAM_REGISTER(selective_scan, SelectiveScanOp);

}  // namespace occam
