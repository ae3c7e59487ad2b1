#include "ops/matrix_scan/op.h"

#include "ops/matrix_scan/kernel.h"
#include "ops/op.h"
#include "ops/ragged.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

struct MatrixScanOp {
  struct Attrs {
    bool merge = false;
    int64_t longest = 0;  // of the sequences that offsets tell
  };
  static constexpr OpInfo info{
      .name = "matrix_scan",
      .contract =
          "q: b t r g n, k: b t r g n, v: b t o h p, log_decay: b t 2 h, scale?: b t 2 h, "
          "skip?: 2 h, floor?: b t e h, diagonal?: b t h, offsets?: s -> b t h e p",
      .cast = Cast::any,
      .bound = Bound::compute,
      .layout = Layout::strided,
      .hint = "r, o = 2 directions, or 1 read by both; e = 2, or 1 when directions are merged"};

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    for (size_t i : {0, 1})
      OCCAM_CHECK(in[i].dtype() == in[2].dtype(), ErrorKind::shape, "matrix_scan: {} is {} but v is {}",
                  i == 0 ? "q" : "k", name_of(in[i].dtype()), name_of(in[2].dtype()));
    Tensor q = rows(in[0]), k = rows(in[1]), v = rows(in[2]);
    const Tensor log_decay = wide(in[3], v), scale = wide(in[4], v), skip = wide(in[5], v),
                 floor = wide(in[6], v), diagonal = wide(in[7], v), offsets = in[8];
    kernels::MatrixScanShape s = sizes(q.shape(), v.shape(), offsets, attrs);
    OCCAM_CHECK(s.g > 0 && s.h % s.g == 0 && s.n > 0 && s.p > 0, ErrorKind::shape,
                "matrix_scan: {} heads of width {} cannot share {} groups of width {}", s.h, s.p, s.g, s.n);
    for (const Tensor* x : {&v, &q})
      OCCAM_CHECK(x->size(2) == 1 || x->size(2) == 2, ErrorKind::shape,
                  "matrix_scan: {} {} has {} directions", x == &v ? "v" : "q", x->shape().str(), x->size(2));
    OCCAM_CHECK(!floor || floor.size(2) == s.outputs(), ErrorKind::shape,
                "matrix_scan: floor {} has {} outputs where there are {}", floor.shape().str(), floor.size(2),
                s.outputs());
    Tensor y = empty({v.size(0), v.size(1), s.h, s.outputs(), s.p}, options_of(v));
    Tensor den = floor ? empty(floor.shape(), options_of(floor)) : Tensor();
    if (offsets && y.numel() > 0) clear_unused_rows(y, offsets, s.rows());
    if (has_tokens(s)) {
      auto arguments = [&]<class T, class A>() {
        kernels::MatrixScanForward<T, A> a{s, view<T>(q), view<T>(k), view<T>(v)};
        a.log_decay = data<A>(log_decay), a.scale = data<A>(scale), a.skip = data<A>(skip);
        a.floor = data<A>(floor), a.diagonal = data<A>(diagonal);
        a.y = y.data<T>(), a.den = data<A>(den);
        return a;
      };
      if (v.is_cuda()) {
        dispatch_cuda(v.dtype(), [&]<class T>() {
          OCCAM_ON_CUDA({
            OCCAM_CHECK(kernels::matrix_scan_fits(s, bool(floor)), ErrorKind::shape,
                        "matrix_scan: states of {} x {} do not fit into the shared memory of {}", s.n, s.p,
                        v.device().str());
            auto a = arguments.template operator()<T, float>();
            Tensor scratch = empty({kernels::matrix_scan_fwd_scratch(a)}, options_of(log_decay));
            kernels::matrix_scan_fwd(a, scratch.data<float>(), current_stream(v.device()).handle);
          });
        });
      } else {
        dispatch_float(v.dtype(), [&]<class T>() {
          kernels::matrix_scan_fwd_cpu<T>(arguments.template operator()<T, T>());
        });
      }
    }
    c.save({q, k, v, log_decay, scale, skip, floor, diagonal, floor ? y : Tensor(), den, offsets});
    // bf16 on the CPU came as f32 and is rounded once, here.
    return {v.is_cpu() ? raw::to(y, c.given_dtype_of(2)) : y};
  }

  static Grads backward(Ctx& c, GradsOut gy_given) {
    Tensor q = c.saved(0), k = c.saved(1), v = c.saved(2), log_decay = c.saved(3), scale = c.saved(4),
           skip = c.saved(5), floor = c.saved(6), diagonal = c.saved(7), y = c.saved(8), den = c.saved(9),
           offsets = c.saved(10);
    kernels::MatrixScanShape s = sizes(q.shape(), v.shape(), offsets, c.attrs<Attrs>());
    const Tensor gy = raw::contiguous(gy_given[0]);
    enum { kQ, kK, kV, kLogDecay, kScale, kSkip, kFloor, kDiagonal, kInputs };
    Grads grads(kInputs + 1);  // offsets have none
    auto make = [&](int i, const Shape& shape, const Tensor& like) {
      if (like && c.needs(size_t(i))) grads[size_t(i)] = empty(shape, options_of(like));
    };
    make(kLogDecay, log_decay.shape(), log_decay);
    if (scale) make(kScale, scale.shape(), scale);
    if (floor) make(kFloor, floor.shape(), floor);
    if (diagonal) make(kDiagonal, diagonal.shape(), diagonal);
    // With gradients of q, k and v by direction, or summed over both.
    auto run = [&]<class T, class A>(kernels::MatrixScanBackward<T, A>& a, kernels::MatrixScanSums sums,
                                     int64_t skips) {
      auto of = [](const Tensor& t, bool summed) { return t.shape().with(2, summed ? 1 : 2); };
      make(kQ, of(q, sums.keys), q), make(kK, of(k, sums.keys), k), make(kV, of(v, sums.values), v);
      if (skip) make(kSkip, {skips, 2, s.h}, skip);
      a.gq = data<T>(grads[kQ]), a.gk = data<T>(grads[kK]), a.gv = data<T>(grads[kV]);
      a.glog_decay = data<A>(grads[kLogDecay]), a.gscale = data<A>(grads[kScale]);
      a.gskip = data<A>(grads[kSkip]), a.gfloor = data<A>(grads[kFloor]);
      a.gdiagonal = data<A>(grads[kDiagonal]);
    };
    auto arguments = [&]<class T, class A>() {
      kernels::MatrixScanBackward<T, A> a{s, view<T>(q), view<T>(k), view<T>(v)};
      a.log_decay = data<A>(log_decay), a.scale = data<A>(scale), a.skip = data<A>(skip);
      a.floor = data<A>(floor), a.diagonal = data<A>(diagonal), a.den = data<A>(den);
      a.y = data<T>(y), a.gy = gy.data<T>();
      return a;
    };
    if (!has_tokens(s)) {
      make(kQ, q.shape(), q), make(kK, k.shape(), k), make(kV, v.shape(), v);
      if (skip) make(kSkip, {1, 2, s.h}, skip);
      for (Tensor& g : grads)
        if (g) g.zero_();
    } else if (v.is_cuda()) {
      dispatch_cuda(v.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA({
          auto a = arguments.template operator()<T, float>();
          run(a, kernels::matrix_scan_bwd_sums(a), kernels::matrix_scan_bwd_skips(a));
          Tensor scratch = empty({kernels::matrix_scan_bwd_scratch(a)}, options_of(log_decay));
          kernels::matrix_scan_bwd(a, scratch.data<float>(), current_stream(v.device()).handle);
        });
      });
    } else {
      dispatch_float(v.dtype(), [&]<class T>() {
        auto a = arguments.template operator()<T, T>();
        run(a, {}, s.b);
        kernels::matrix_scan_bwd_cpu(a);
      });
    }
    for (int i = 0; i < kInputs; ++i) {
      Tensor& g = grads[size_t(i)];
      if (!g) continue;
      if (i == kSkip)
        g = raw::reshape(raw::sum_to_shape(g, {1, 2, s.h}), skip.shape());
      else if (offsets && g.numel() > 0)
        clear_unused_rows(g, offsets, s.rows());
      if (i <= kV && g.size(2) != (i == kV ? v : q).size(2)) g = raw::sum_to_shape(g, g.shape().with(2, 1));
    }
    return grads;
  }

  /// The step form: k v^T and S^T q.
  static Cost cost(Shapes in, DType dtype, const Attrs& attrs) {
    double values = double(in[3].numel()) * double(in[2][4]), state = double(in[0][4]) * values;
    return {4 * state, bytes_of(in.first(3), dtype) +
                           4 * double(in[3].numel() + in[4].numel() + in[7].numel()) +
                           values / (attrs.merge ? 2 : 1) * double(size_of(dtype))};
  }

 private:
  static kernels::MatrixScanShape sizes(const Shape& q, const Shape& v, const Tensor& offsets,
                                        const Attrs& attrs) {
    return {occam::rows_of(v, offsets, attrs.longest), q[3], v[3], q[4], v[4], attrs.merge};
  }
  static bool has_tokens(const kernels::MatrixScanShape& s) {
    return s.rows() > 0 && s.b > 0 && s.t > 0 && s.h > 0;
  }
  /// Rows of numbers side by side. A direction axis without a stride means one direction (view()), so one
  /// that was expanded is written out.
  static Tensor rows(const Tensor& t) {
    const bool expanded = t.size(2) > 1 && t.strides()[2] == 0;
    return t.strides()[4] == 1 && !expanded ? t : raw::contiguous(t);
  }
  static Tensor wide(const Tensor& t, const Tensor& v) {
    return t ? raw::contiguous(raw::to(t, v.dtype() == DType::f64 ? DType::f64 : DType::f32)) : t;
  }
  template <class T>
  static kernels::ScanView<T> view(const Tensor& t) {
    return {t.data<T>(), t.strides()[0], t.strides()[1], t.size(2) == 1 ? 0 : t.strides()[2], t.strides()[3]};
  }
  template <class A>
  static A* data(const Tensor& t) {
    return t ? t.data<A>() : nullptr;
  }
};

}  // namespace

Tensor matrix_scan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay,
                   const MatrixScanOptions& options, const Sequences& rows) {
  OCCAM_CHECK(!options.skip || !options.floor, ErrorKind::usage,
              "matrix_scan: a skip connection goes round no normaliser; leave out skip or floor");
  OCCAM_CHECK(!options.diagonal || (options.merge && !options.skip && !options.floor), ErrorKind::usage,
              "matrix_scan: a diagonal is one of merged directions, without skip and floor");
  check_sequences("matrix_scan", rows, v);
  auto image = [&](const Tensor& t) { return as_image(t, rows); };
  Tensor y = apply<MatrixScanOp>({image(q), image(k), image(v), image(log_decay), image(options.scale),
                                  options.skip, image(options.floor), image(options.diagonal), rows.offsets},
                                 {options.merge, rows.longest})[0];
  return as_rows(y, rows);
}

OCCAM_REGISTER(matrix_scan, MatrixScanOp);

}  // namespace occam
