#include "ops/matrix_scan/op.h"

#include "ops/matrix_scan/kernel.h"
#include "ops/op.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

struct MatrixScanOp {
  struct Attrs {
    bool merge = false;
  };
  static constexpr OpInfo info{
      .name = "matrix_scan",
      .contract =
          "q: b t 2 g n, k: b t 2 g n, v: b t 2 h p, log_decay: b t 2 h, scale?: b t 2 h, "
          "skip?: 2 h, floor?: b t e h -> b t h e p",
      .cast = Cast::any,
      .bound = Bound::compute,
      .layout = Layout::strided,
      .hint = "axis 2 is the direction; e = 2, or 1 when directions are merged"};

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    for (size_t i : {0, 1})
      OCCAM_CHECK(in[i].dtype() == in[2].dtype(), ErrorKind::shape, "matrix_scan: {} is {} but v is {}",
                  i == 0 ? "q" : "k", name_of(in[i].dtype()), name_of(in[2].dtype()));
    Tensor q = rows(in[0]), k = rows(in[1]), v = rows(in[2]);
    const Tensor log_decay = wide(in[3], v), scale = wide(in[4], v), skip = wide(in[5], v),
                 floor = wide(in[6], v);
    kernels::ScanShape s = sizes(q.shape(), v.shape(), attrs.merge);
    OCCAM_CHECK(s.g > 0 && s.h % s.g == 0 && s.n > 0 && s.p > 0, ErrorKind::shape,
                "matrix_scan: {} heads of width {} cannot share {} groups of width {}", s.h, s.p, s.g, s.n);
    OCCAM_CHECK(!floor || floor.size(2) == s.outputs(), ErrorKind::shape,
                "matrix_scan: floor {} has {} outputs where there are {}", floor.shape().str(), floor.size(2),
                s.outputs());
    Tensor y = empty({s.b, s.t, s.h, s.outputs(), s.p}, options_of(v));
    Tensor den = floor ? empty(floor.shape(), options_of(floor)) : Tensor();
    if (y.numel() > 0) {
      auto arguments = [&]<class T, class A>() {
        return kernels::MatrixScanForward<T, A>{s,
                                                view<T>(q),
                                                view<T>(k),
                                                view<T>(v),
                                                data<A>(log_decay),
                                                data<A>(scale),
                                                data<A>(skip),
                                                data<A>(floor),
                                                y.data<T>(),
                                                data<A>(den)};
      };
      if (v.is_cuda()) {
        dispatch_cuda(v.dtype(), [&]<class T>() {
          OCCAM_ON_CUDA({
            OCCAM_CHECK(kernels::matrix_scan_fits(s, bool(floor)), ErrorKind::shape,
                        "matrix_scan: states of {} x {} do not fit into the shared memory of {}", s.n, s.p,
                        v.device().str());
            Tensor scratch = empty({kernels::matrix_scan_fwd_scratch(s, bool(floor))}, options_of(log_decay));
            kernels::matrix_scan_fwd<T>(arguments.template operator()<T, float>(), scratch.data<float>(),
                                        current_stream(v.device()).handle);
          });
        });
      } else {
        dispatch_float(v.dtype(), [&]<class T>() {
          kernels::matrix_scan_fwd_cpu<T>(arguments.template operator()<T, T>());
        });
      }
    }
    c.save({q, k, v, log_decay, scale, skip, floor, y, den});
    // bf16 on the CPU came as f32 and is rounded once, here.
    return {v.is_cpu() ? raw::to(y, c.grad_dtype_of(2)) : y};
  }

  static Grads backward(Ctx& c, GradsOut gy_given) {
    Tensor q = c.saved(0), k = c.saved(1), v = c.saved(2), log_decay = c.saved(3), scale = c.saved(4),
           skip = c.saved(5), floor = c.saved(6), y = c.saved(7), den = c.saved(8);
    kernels::ScanShape s = sizes(q.shape(), v.shape(), c.attrs<Attrs>().merge);
    const Tensor gy = raw::contiguous(gy_given[0]);
    auto like = [](const Tensor& t) { return t ? empty_like(t) : t; };
    Tensor gq = like(q), gk = like(k), gv = like(v), glog = like(log_decay), gscale = like(scale),
           gfloor = like(floor);
    Tensor gskip = skip ? empty({s.b, 2, s.h}, options_of(skip)) : Tensor();
    if (y.numel() > 0) {
      auto arguments = [&]<class T, class A>() {
        return kernels::MatrixScanBackward<T, A>{s,
                                                 view<T>(q),
                                                 view<T>(k),
                                                 view<T>(v),
                                                 data<A>(log_decay),
                                                 data<A>(scale),
                                                 data<A>(skip),
                                                 data<A>(floor),
                                                 data<A>(den),
                                                 y.data<T>(),
                                                 gy.data<T>(),
                                                 gq.data<T>(),
                                                 gk.data<T>(),
                                                 gv.data<T>(),
                                                 data<A>(glog),
                                                 data<A>(gscale),
                                                 data<A>(gskip),
                                                 data<A>(gfloor)};
      };
      if (v.is_cuda()) {
        dispatch_cuda(v.dtype(), [&]<class T>() {
          OCCAM_ON_CUDA({
            Tensor scratch = empty({kernels::matrix_scan_bwd_scratch(s, bool(floor))}, options_of(log_decay));
            kernels::matrix_scan_bwd<T>(arguments.template operator()<T, float>(), scratch.data<float>(),
                                        current_stream(v.device()).handle);
          });
        });
      } else {
        dispatch_float(v.dtype(), [&]<class T>() {
          kernels::matrix_scan_bwd_cpu<T>(arguments.template operator()<T, T>());
        });
      }
    } else {
      for (Tensor* g : {&gq, &gk, &gv, &glog, &gscale, &gskip, &gfloor})
        if (*g) g->zero_();
    }
    if (skip) gskip = raw::reshape(raw::sum_to_shape(gskip, {1, 2, s.h}), skip.shape());
    Grads grads{gq, gk, gv, glog, gscale, gskip, gfloor};
    for (size_t i = 0; i < grads.size(); ++i)
      if (!c.needs(i)) grads[i] = Tensor();
    return grads;
  }

  /// The step form: k v^T and S^T q.
  static Cost cost(Shapes in, DType dtype, const Attrs& attrs) {
    double state = double(in[0][4]) * double(in[2].numel());
    return {4 * state, bytes_of(in.first(3), dtype) + 4 * double(in[3].numel() + in[4].numel()) +
                           double(in[2].numel()) / (attrs.merge ? 2 : 1) * double(size_of(dtype))};
  }

 private:
  static kernels::ScanShape sizes(const Shape& q, const Shape& v, bool merge) {
    return {v[0], v[1], q[3], v[3], q[4], v[4], merge};
  }
  static Tensor rows(const Tensor& t) { return t.strides()[4] == 1 ? t : raw::contiguous(t); }
  static Tensor wide(const Tensor& t, const Tensor& v) {
    return t ? raw::contiguous(raw::to(t, v.dtype() == DType::f64 ? DType::f64 : DType::f32)) : t;
  }
  template <class T>
  static kernels::ScanView<T> view(const Tensor& t) {
    return {t.data<T>(), t.strides()[0], t.strides()[1], t.strides()[2], t.strides()[3]};
  }
  template <class A>
  static A* data(const Tensor& t) {
    return t ? t.data<A>() : nullptr;
  }
};

}  // namespace

Tensor matrix_scan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay,
                   const MatrixScanOptions& options) {
  OCCAM_CHECK(!options.skip || !options.floor, ErrorKind::usage,
              "matrix_scan: a skip connection goes round no normaliser; leave out skip or floor");
  return apply<MatrixScanOp>({q, k, v, log_decay, options.scale, options.skip, options.floor},
                             {options.merge})[0];
}

OCCAM_REGISTER(matrix_scan, MatrixScanOp);

}  // namespace occam
