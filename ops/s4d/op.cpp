#include "ops/s4d/op.h"

#include "ops/channel_scan.h"
#include "ops/op.h"
#include "ops/reduce/op.h"
#include "ops/s4d/kernel.h"

namespace occam {
namespace {

struct S4dOp {
  struct Attrs {
    int64_t heads, longest;
  };
  static constexpr OpInfo info{
      .name = "s4d",
      .contract =
          "u: b t c, log_dt: 2 c, a_log: 2 c n, a_im: 2 c n, out: 2 c n 2, skip: 2 c, offsets?: s -> b t h o",
      .bound = Bound::compute,
      .hint = "the first 2 is that of the directions"};

  static kernels::ChannelScanShape sizes(In in, const Attrs& attrs) {
    const Shape &u = in[0].shape(), &a_log = in[2].shape();
    return channel_scan_shape(info.name, u, u[2], a_log[2], 32, attrs.heads, in[6], attrs.longest);
  }
  template <class T>
  static kernels::S4dParameters<T> parameters(In in) {
    return {in[1].data<T>(), in[2].data<T>(), in[3].data<T>(), in[4].data<T>()};
  }
  /// What is kept between kernels: f32 beside bf16.
  static TensorOptions between(const Tensor& u) {
    return {u.dtype() == DType::f64 ? DType::f64 : DType::f32, u.device()};
  }
  static Tensor coefficients_of(const kernels::ChannelScanShape& s, In in) {
    const Tensor& u = in[0];
    Tensor coefficients = empty({2, s.c, s.n, 4}, between(u));
    if (u.is_cuda())
      dispatch_cuda(u.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::s4d_coefficients(s, parameters<T>(in), coefficients.data<float>(),
                                                current_stream(u.device()).handle));
      });
    else
      dispatch_float(u.dtype(), [&]<class T>() {
        kernels::s4d_coefficients_cpu(s, parameters<T>(in), coefficients.data<T>());
      });
    return coefficients;
  }
  template <class T, class A>
  static void scan(const kernels::S4dScan<T, A>& a, const Tensor& u) {
    if (u.is_cuda()) {
      if constexpr (std::is_same_v<A, float>) {
        OCCAM_ON_CUDA(Tensor room = empty({kernels::s4d_workspace(a.s)}, between(u));
                      kernels::s4d_scan(a, room.data<float>(), current_stream(u.device()).handle));
      }
    } else if constexpr (std::is_same_v<T, A>) {
      kernels::s4d_scan_cpu(a);
    }
  }
  /// f with the storage type and the type between kernels.
  template <class F>
  static void dispatch(const Tensor& u, F&& f) {
    if (u.is_cuda())
      dispatch_cuda(u.dtype(), [&]<class T>() { f.template operator()<T, float>(); });
    else
      dispatch_float(u.dtype(), [&]<class T>() { f.template operator()<T, T>(); });
  }

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    const Tensor& u = in[0];
    const kernels::ChannelScanShape s = sizes(in, attrs);
    Tensor y = empty({u.size(0), u.size(1), attrs.heads, 2 * s.w}, options_of(u));
    c.save({in[0], in[1], in[2], in[3], in[4], in[5], in[6]});
    if (!s.is_empty()) {
      const Tensor coefficients = coefficients_of(s, in);
      dispatch(u, [&]<class T, class A>() {
        scan<T, A>({s, u.data<T>(), in[5].data<T>(), coefficients.data<A>(), y.data<T>()}, u);
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
    if (s.is_empty()) {
      for (size_t i = 0; i < 6; ++i)
        if (c.needs(i)) grads[i] = zeros(in[i].shape(), {c.grad_dtype_of(i), u.device()});
      return grads;
    }
    const Tensor coefficients = coefficients_of(s, in);
    if (c.needs(0)) {
      Tensor parts = empty({2, s.rows(), s.c}, between(u));
      dispatch(u, [&]<class T, class A>() {
        kernels::S4dScan<T, A> a{.s = s, .skip = in[5].data<T>(), .coefficients = coefficients.data<A>()};
        a.gy = gy[0].data<T>(), a.gu = parts.data<A>();
        scan(a, u);
      });
      parts = raw::sum_to_shape(parts, {1, s.rows(), s.c}, parts.dtype());
      grads[0] = raw::to(raw::reshape(parts, u.shape()), u.dtype());
      if (in[6]) clear_unused_rows(grads[0], in[6], s.rows());
    }
    bool any = false;
    for (size_t i = 1; i < 6; ++i) any = any || c.needs(i);
    if (any) parameter_grads(c, grads, s, in, coefficients, gy[0]);
    return grads;
  }

  static void parameter_grads(Ctx& c, Grads& grads, const kernels::ChannelScanShape& s,
                              const std::vector<Tensor>& in, const Tensor& coefficients, const Tensor& gy) {
    const Tensor& u = in[0];
    int64_t parts = s.b;
    if (u.is_cuda()) OCCAM_ON_CUDA(parts = kernels::s4d_parts(s));
    Tensor states = empty({parts, 2, s.c, s.n, 4}, between(u)), skip = empty({parts, 2, s.c}, between(u));
    dispatch(u, [&]<class T, class A>() {
      kernels::S4dSums<T, A> a{
          s, u.data<T>(), gy.data<T>(), coefficients.data<A>(), states.data<A>(), skip.data<A>()};
      if (u.is_cuda()) {
        if constexpr (std::is_same_v<A, float>) {
          OCCAM_ON_CUDA(Tensor room = empty({kernels::s4d_workspace(s)}, between(u));
                        kernels::s4d_sums(a, room.data<float>(), current_stream(u.device()).handle));
        }
      } else if constexpr (std::is_same_v<T, A>) {
        kernels::s4d_sums_cpu(a);
      }
    });
    states = raw::sum_to_shape(states, {1, 2, s.c, s.n, 4}, states.dtype());
    for (size_t i = 1; i < 5; ++i) grads[i] = empty(in[i].shape(), between(u));
    dispatch(u, [&]<class T, class A>() {
      const kernels::S4dParameterGrads<A> g{grads[1].data<A>(), grads[2].data<A>(), grads[3].data<A>(),
                                            grads[4].data<A>()};
      if (u.is_cuda()) {
        if constexpr (std::is_same_v<A, float>) {
          OCCAM_ON_CUDA(kernels::s4d_parameter_grads(s, parameters<T>(in), states.data<float>(), g,
                                                     current_stream(u.device()).handle));
        }
      } else if constexpr (std::is_same_v<T, A>) {
        kernels::s4d_parameter_grads_cpu(s, parameters<T>(in), states.data<T>(), g);
      }
    });
    grads[5] = raw::reshape(raw::sum_to_shape(skip, {1, 2, s.c}, skip.dtype()), in[5].shape());
    for (size_t i = 1; i < 6; ++i) {
      if (!c.needs(i)) grads[i] = Tensor();
      if (grads[i] && c.grad_dtype_of(i) != DType::f32) grads[i] = raw::to(grads[i], u.dtype());
    }
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    const double steps = 2 * double(in[0].numel()), bytes = double(size_of(dtype));
    return {12 * steps * double(in[2][2]), bytes_of(in, dtype) + steps * bytes};
  }
};

}  // namespace

Tensor s4d(const Tensor& u, const Tensor& log_dt, const Tensor& a_log, const Tensor& a_im, const Tensor& out,
           const Tensor& skip, int64_t heads, const Sequences& rows) {
  check_sequences("s4d", rows, u);
  return as_rows(apply<S4dOp>({as_image(u, rows), log_dt, a_log, a_im, out, skip, rows.offsets},
                              {heads, rows.longest})[0],
                 rows);
}

OCCAM_REGISTER(s4d, S4dOp);

}  // namespace occam
