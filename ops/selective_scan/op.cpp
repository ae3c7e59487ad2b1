#include "ops/selective_scan/op.h"

#include "ops/channel_scan.h"
#include "ops/op.h"
#include "ops/reduce/op.h"
#include "ops/selective_scan/kernel.h"

namespace occam {
namespace {

struct SelectiveScanOp {
  struct Attrs {
    int64_t heads, longest;
  };
  static constexpr OpInfo info{.name = "selective_scan",
                               .contract =
                                   "u: b t 2 c, delta: b t 2 c, a_log: 2 c n, in: b t 2 n, out: b t 2 n, "
                                   "skip: 2 c, offsets?: s -> b t h o",
                               .bound = Bound::compute,
                               .hint = "2: the directions"};

  static kernels::ChannelScanShape sizes(In in, const Attrs& attrs) {
    const Shape &u = in[0].shape(), &a_log = in[2].shape();
    return channel_scan_shape(info.name, u, u[3], a_log[2], 64, attrs.heads, in[6], attrs.longest);
  }
  template <class T>
  static kernels::SelectiveScan<T> arguments(const kernels::ChannelScanShape& s, In in) {
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
    const kernels::ChannelScanShape s = sizes(in, attrs);
    Tensor y = empty({u.size(0), u.size(1), attrs.heads, 2 * s.w}, options_of(u));
    c.save({in[0], in[1], in[2], in[3], in[4], in[5], in[6]});
    if (u.is_cuda() && !s.is_empty()) {
      dispatch_cuda(u.dtype(), [&]<class T>() {
        kernels::SelectiveScan<T> a = arguments<T>(s, in);
        a.y = y.data<T>();
        OCCAM_ON_CUDA(Tensor room = floats(kernels::selective_scan_fwd_workspace(s), u);
                      kernels::selective_scan_fwd(a, room.data<float>(), current_stream(u.device()).handle));
      });
    } else if (!s.is_empty()) {
      dispatch_float(u.dtype(), [&]<class T>() {
        kernels::SelectiveScan<T> a = arguments<T>(s, in);
        a.y = y.data<T>();
        kernels::selective_scan_fwd_cpu(a);
      });
    }
    if (in[6]) clear_unused_rows(y, in[6], s.rows());
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    const std::vector<Tensor> in{c.saved(0), c.saved(1), c.saved(2), c.saved(3),
                                 c.saved(4), c.saved(5), c.saved(6)};
    const Tensor& u = in[0];
    const kernels::ChannelScanShape s = sizes(in, c.attrs<Attrs>());
    Grads grads(7);
    for (size_t i : {0, 1, 3, 4}) grads[i] = empty_like(in[i]);
    Tensor parts_a, parts_skip;
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
    if (s.is_empty()) {
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
    for (size_t i : {0, 1, 3, 4})
      if (in[6] && c.needs(i)) clear_unused_rows(grads[i], in[6], s.rows());
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
                      const Tensor& out, const Tensor& skip, int64_t heads, const Sequences& rows) {
  check_sequences("selective_scan", rows, u);
  return as_rows(apply<SelectiveScanOp>({as_image(u, rows), as_image(delta, rows), a_log, as_image(in, rows),
                                         as_image(out, rows), skip, rows.offsets},
                                        {heads, rows.longest})[0],
                 rows);
}

OCCAM_REGISTER(selective_scan, SelectiveScanOp);

}  // namespace occam
