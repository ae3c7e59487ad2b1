#include "ops/scan_gates/op.h"

#include <algorithm>

#include "ops/op.h"
#include "ops/ragged.h"
#include "ops/reduce/op.h"
#include "ops/scan_gates/gates.h"
#include "ops/scan_gates/kernel.h"

namespace occam {
namespace {

using kernels::GateShape;

TensorOptions wide_like(const Tensor& x) {
  return {x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device()};
}
/// Parameters beside the gates, in the precision of the results.
Tensor wide(const Tensor& t, const Tensor& x) { return raw::to(t, wide_like(x).dtype); }
GateShape sizes(const Shape& s, const Tensor& offsets = {}, int64_t longest = 0) {
  return {rows_of(s, offsets, longest), s[3]};
}
struct RaggedAttrs {
  int64_t longest;
};

template <class Args, class Fn>
void for_each_gate(const Args& a, const Fn& fn) {
  const int64_t count = a.s.count();
#pragma omp parallel for if (count > 4096)
  for (int64_t n = 0; n < count; ++n) fn(a, n);
}

template <class A>
A* data(const Tensor& t) {
  return t ? t.data<A>() : nullptr;
}

struct SoftplusGatesOp {
  struct Attrs {};
  static constexpr OpInfo info{.name = "softplus_gates",
                               .contract = "x: b t 2 h, bias: 2 h, a_log: 2 h -> b t 2 h, b t 2 h",
                               .cast = Cast::any};

  static Outs forward(Ctx& c, In in, const Attrs&) {
    const Tensor& x = in[0];
    Tensor bias = wide(in[1], x), a_log = wide(in[2], x);
    Tensor scale = empty(x.shape(), wide_like(x)), log_decay = empty_like(scale);
    auto arguments = [&]<class T, class A>() {
      return kernels::SoftplusGatesArgs<T, A>{sizes(x.shape()), x.data<T>(),     bias.data<A>(),
                                              a_log.data<A>(),  scale.data<A>(), log_decay.data<A>()};
    };
    if (x.numel() == 0) {
    } else if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::softplus_gates_fwd<T>(arguments.template operator()<T, float>(),
                                                     current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        for_each_gate(arguments.template operator()<T, T>(), kernels::softplus_gates_at<T, T>);
      });
    }
    c.save({x, bias, a_log});
    return {scale, log_decay};
  }

  static Grads backward(Ctx& c, GradsOut g) {
    Tensor x = c.saved(0), bias = c.saved(1), a_log = c.saved(2);
    Tensor gx = empty(x.shape(), wide_like(x)), gz = empty_like(gx);
    auto arguments = [&]<class T, class A>() {
      kernels::SoftplusGatesArgs<T, A> a{sizes(x.shape()), x.data<T>(), bias.data<A>(), a_log.data<A>()};
      a.gscale = data<A>(g[0]), a.glog_decay = data<A>(g[1]);
      a.gx = gx.data<A>(), a.gz = gz.data<A>();
      return a;
    };
    if (x.numel() == 0) {
    } else if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::softplus_gates_bwd<T>(arguments.template operator()<T, float>(),
                                                     current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        for_each_gate(arguments.template operator()<T, T>(), kernels::softplus_gates_back_at<T, T>);
      });
    }
    return {c.needs(0) ? gx : Tensor(), c.needs(1) ? over_tokens(gx, bias) : Tensor(),
            c.needs(2) ? over_tokens(gz, a_log) : Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {40 * double(in[0].numel()), bytes_of(in, dtype) + 8 * double(in[0].numel())};
  }

 private:
  static Tensor over_tokens(const Tensor& g, const Tensor& like) {
    return raw::reshape(raw::sum_to_shape(g, {1, 1, like.size(0), like.size(1)}), like.shape());
  }
};

struct GateMaximumOp {
  using Attrs = RaggedAttrs;
  static constexpr OpInfo info{.name = "gate_maximum",
                               .contract = "i: b t 2 h, f: b t 2 h, offsets?: s -> b t 2 h",
                               .cast = Cast::any};
  static constexpr NonDifferentiable kNoGradient{"a stabiliser: what is made with it does not depend on it"};

  static Outs forward(Ctx&, In in, const Attrs& attrs) {
    const Tensor &i = in[0], f = raw::to(in[1], i.dtype()), &offsets = in[2];
    const GateShape s = sizes(i.shape(), offsets, attrs.longest);
    Tensor m = empty(i.shape(), wide_like(i));
    if (i.numel() == 0) {
    } else if (i.is_cuda()) {
      dispatch_cuda(i.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::gate_maximum_fwd<T>(s, i.data<T>(), f.data<T>(), m.data<float>(),
                                                   current_stream(i.device()).handle));
      });
    } else {
      dispatch_float(i.dtype(), [&]<class T>() {
        const int64_t width = 2 * s.h;
#pragma omp parallel for if (i.numel() > 4096)
        for (int64_t line = 0; line < s.b * width; ++line) {
          const int64_t begin = s.begin(line / width), length = s.length(line / width);
          T now = 0;
          for (int64_t step = 0; step < length; ++step) {
            int64_t token = begin + (line % width < s.h ? step : length - 1 - step);
            int64_t at = token * width + line % width;
            now = std::max({now - kernels::softplus_of(-f.data<T>()[at]), i.data<T>()[at], T(0)});
            m.data<T>()[at] = now;
          }
        }
      });
    }
    if (offsets) clear_unused_rows(m, offsets, s.rows());
    return {m};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {20 * double(in[0].numel()), bytes_of(in, dtype) + 4 * double(in[0].numel())};
  }
};

struct ExponentialGatesOp {
  using Attrs = RaggedAttrs;
  static constexpr OpInfo info{
      .name = "exponential_gates",
      .contract = "i: b t 2 h, f: b t 2 h, m: b t 2 h, offsets?: s -> b t 2 h, b t 2 h, b t 2 h",
      .cast = Cast::any};

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    const Tensor &i = in[0], f = raw::to(in[1], i.dtype()), m = wide(in[2], i), &offsets = in[3];
    const GateShape s = sizes(i.shape(), offsets, attrs.longest);
    Tensor scale = empty(i.shape(), wide_like(i)), log_decay = empty_like(scale), floor = empty_like(scale);
    auto arguments = [&]<class T, class A>() {
      return kernels::ExponentialGatesArgs<T, A>{
          s, i.data<T>(), f.data<T>(), m.data<A>(), scale.data<A>(), log_decay.data<A>(), floor.data<A>()};
    };
    if (i.numel() == 0) {
    } else if (i.is_cuda()) {
      dispatch_cuda(i.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::exponential_gates_fwd<T>(arguments.template operator()<T, float>(),
                                                        current_stream(i.device()).handle));
      });
    } else {
      dispatch_float(i.dtype(), [&]<class T>() {
        for_each_gate(arguments.template operator()<T, T>(), kernels::exponential_gates_at<T, T>);
      });
    }
    for (const Tensor& y : {scale, log_decay, floor})
      if (offsets) clear_unused_rows(y, offsets, s.rows());
    c.save({i, f, m, offsets});
    return {scale, log_decay, floor};
  }

  static Grads backward(Ctx& c, GradsOut g) {
    Tensor i = c.saved(0), f = c.saved(1), m = c.saved(2), offsets = c.saved(3);
    const GateShape s = sizes(i.shape(), offsets, c.attrs<Attrs>().longest);
    Tensor gi = empty(i.shape(), wide_like(i)), gf = empty_like(gi);
    auto arguments = [&]<class T, class A>() {
      kernels::ExponentialGatesArgs<T, A> a{s, i.data<T>(), f.data<T>(), m.data<A>()};
      a.gscale = data<A>(g[0]), a.glog_decay = data<A>(g[1]);
      a.gi = gi.data<A>(), a.gf = gf.data<A>();
      return a;
    };
    if (i.numel() == 0) {
    } else if (i.is_cuda()) {
      dispatch_cuda(i.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::exponential_gates_bwd<T>(arguments.template operator()<T, float>(),
                                                        current_stream(i.device()).handle));
      });
    } else {
      dispatch_float(i.dtype(), [&]<class T>() {
        for_each_gate(arguments.template operator()<T, T>(), kernels::exponential_gates_back_at<T, T>);
      });
    }
    for (const Tensor& g : {gi, gf})
      if (offsets) clear_unused_rows(g, offsets, s.rows());
    return {c.needs(0) ? gi : Tensor(), c.needs(1) ? gf : Tensor(), Tensor(), Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {40 * double(in[0].numel()), bytes_of(in.first(2), dtype) + 16 * double(in[0].numel())};
  }
};

}  // namespace

SoftplusGates softplus_gates(const Tensor& x, const Tensor& bias, const Tensor& a_log) {
  Outs y = apply<SoftplusGatesOp>({x, bias, a_log});
  return {y[0], y[1]};
}
Tensor gate_maximum(const Tensor& i, const Tensor& f, const Sequences& rows) {
  check_sequences("gate_maximum", rows, i);
  return as_rows(
      apply<GateMaximumOp>({as_image(i, rows), as_image(f, rows), rows.offsets}, {rows.longest})[0], rows);
}
ExponentialGates exponential_gates(const Tensor& i, const Tensor& f, const Tensor& m, const Sequences& rows) {
  check_sequences("exponential_gates", rows, i);
  Outs y = apply<ExponentialGatesOp>({as_image(i, rows), as_image(f, rows), as_image(m, rows), rows.offsets},
                                     {rows.longest});
  return {as_rows(y[0], rows), as_rows(y[1], rows), as_rows(y[2], rows)};
}

OCCAM_REGISTER(scan_gates, SoftplusGatesOp, GateMaximumOp, ExponentialGatesOp);

}  // namespace occam
