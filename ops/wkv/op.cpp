#include "ops/wkv/op.h"

#include <type_traits>

#include "ops/op.h"
#include "ops/ragged.h"
#include "ops/wkv/kernel.h"

namespace occam {
namespace {

struct Wkv {
  struct Attrs {
    int64_t longest;
  };
  static constexpr OpInfo info{.name = "wkv",
                               .contract = "k: b t c, v: b t c, w: c, u: c, offsets?: s -> b t c",
                               .bound = Bound::memory};

  static TensorOptions wide(const Tensor& t) {
    return {t.dtype() == DType::f64 ? DType::f64 : DType::f32, t.device()};
  }

  static Outs forward(Ctx& c, In in, const Attrs& attrs) {
    const Tensor &k = in[0], &offsets = in[4];
    const kernels::WkvShape s{rows_of(k.shape(), offsets, attrs.longest), k.size(2)};
    OCCAM_CHECK(s.t < int64_t(1) << 31, ErrorKind::shape, "wkv: k {} has sequences of 2^31 tokens or more",
                k.shape().str());
    const bool any = c.needs(0) || c.needs(1) || c.needs(2) || c.needs(3);
    Tensor y = empty_like(k), log_sum = any ? empty(k.shape(), wide(k)) : Tensor();
    // Gradients are differences from y, which its rounding to bf16 would drown.
    Tensor wide_y = !any ? Tensor() : wide(k).dtype == k.dtype() ? y : empty(k.shape(), wide(k));
    auto fill = [&]<class T, class M>(kernels::WkvForward<T, M> a) {
      a.s = s;
      a.k = k.data<T>(), a.v = in[1].data<T>(), a.w = in[2].data<T>(), a.u = in[3].data<T>();
      a.y = y.data<T>();
      if (log_sum) a.log_sum = log_sum.data<M>();
      if (any && !std::is_same_v<T, M>) a.wide_y = wide_y.data<M>();
      return a;
    };
    if (k.is_cuda())
      dispatch_cuda(k.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA({
          auto a = fill(kernels::WkvForward<T, float>{});
          Tensor scratch = empty({kernels::wkv_scratch(a)}, wide(k));
          a.scratch = scratch.data<float>();
          kernels::wkv_fwd(a, current_stream(k.device()).handle);
        });
      });
    else
      dispatch_float(k.dtype(), [&]<class T>() { kernels::wkv_fwd_cpu(fill(kernels::WkvForward<T, T>{})); });
    if (offsets) clear_unused_rows(y, offsets, s.rows());
    if (any) c.save({k, in[1], in[2], in[3], wide_y, log_sum, offsets});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    const Tensor &g = gy[0], k = c.saved(0), v = c.saved(1), w = c.saved(2), u = c.saved(3), y = c.saved(4),
                 log_sum = c.saved(5), offsets = c.saved(6);
    const kernels::WkvShape s{rows_of(k.shape(), offsets, c.attrs<Attrs>().longest), k.size(2)};
    Grads grads{empty_like(k), empty_like(k), empty({s.c}, wide(k)), empty({s.c}, wide(k)), Tensor()};
    auto fill = [&]<class T, class M>(kernels::WkvBackward<T, M> a) {
      a.s = s;
      a.k = k.data<T>(), a.v = v.data<T>(), a.w = w.data<T>(), a.u = u.data<T>();
      a.y = y.data<M>(), a.gy = g.data<T>(), a.log_sum = log_sum.data<M>();
      a.gk = grads[0].data<T>(), a.gv = grads[1].data<T>();
      a.gw = grads[2].data<M>(), a.gu = grads[3].data<M>();
      return a;
    };
    if (k.is_cuda())
      dispatch_cuda(k.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA({
          auto a = fill(kernels::WkvBackward<T, float>{});
          Tensor scratch = empty({kernels::wkv_scratch(a)}, wide(k));
          a.scratch = scratch.data<float>();
          kernels::wkv_bwd(a, current_stream(k.device()).handle);
        });
      });
    else
      dispatch_float(k.dtype(), [&]<class T>() { kernels::wkv_bwd_cpu(fill(kernels::WkvBackward<T, T>{})); });
    for (const Tensor& g : {grads[0], grads[1]})
      if (offsets) clear_unused_rows(g, offsets, s.rows());
    for (size_t i = 0; i < 4; ++i)
      if (!c.needs(int(i))) grads[i] = {};
    return grads;
  }

  /// Two states of two sums, each a multiply-add a token.
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    const double n = double(in[0].numel());
    return {8 * n, bytes_of(in, dtype) + n * double(size_of(dtype))};
  }
};

}  // namespace

Tensor wkv(const Tensor& k, const Tensor& v, const Tensor& w, const Tensor& u, const Sequences& rows) {
  check_sequences("wkv", rows, k);
  return as_rows(apply<Wkv>({as_image(k, rows), as_image(v, rows), w, u, rows.offsets}, {rows.longest})[0],
                 rows);
}

OCCAM_REGISTER(wkv, Wkv);

}  // namespace occam
