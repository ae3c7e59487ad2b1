#include "ops/dropout/op.h"

#include <algorithm>

#include "core/rng.h"
#include "ops/dropout/kernel.h"
#include "ops/op.h"

namespace occam {
namespace {

struct Dropout {
  struct Attrs {
    double p = 0;
    bool per_sample = false;
    uint64_t key = 0;
  };
  static constexpr OpInfo info{.name = "dropout", .contract = "x: ..., step: 1 -> ..."};

  static Tensor masked(const Tensor& x, const Tensor& step, const Attrs& a) {
    Tensor y = empty_like(x);
    int64_t n = x.numel(), group = a.per_sample && x.rank() > 0 ? n / std::max<int64_t>(x.size(0), 1) : 1;
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::dropout(x.data<T>(), y.data<T>(), n, group, a.key, step.data<int64_t>(),
                                       float(a.p), current_stream(x.device()).handle));
      });
      return y;
    }
    dispatch_float(x.dtype(), [&]<class T>() {
      const T* in = x.data<T>();
      T *out = y.data<T>(), scale = T(1 / (1 - a.p));
      auto now = uint64_t(*step.data<int64_t>());
#pragma omp parallel for if (n > 4096)
      for (int64_t i = 0; i < n; ++i)
        out[i] = philox_uniform(a.key, now, uint64_t(i / group)) >= float(a.p) ? in[i] * scale : T(0);
    });
    return y;
  }

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    c.save({in[1]});
    return {masked(in[0], in[1], a)};
  }
  /// The mask is drawn again; only the step number is kept.
  static Grads backward(Ctx& c, GradsOut gy) {
    return {masked(gy[0], c.saved(0), c.attrs<Attrs>()), Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {double(in[0].numel()), 2 * double(in[0].numel()) * double(size_of(dtype))};
  }
};

void check_probability(double p) {
  OCCAM_CHECK(p >= 0 && p < 1, ErrorKind::usage, "dropout: p is {}, expected a value in [0, 1)", p);
}

Tensor drop(const Tensor& x, bool per_sample, const BranchDrop& d) {
  // The step counter may have moved on by the time backward runs, so each call keeps its own copy.
  return apply<Dropout>({x, raw::clone(d.step)}, {d.p, per_sample, d.key})[0];
}

Tensor drop(const Tensor& x, double p, bool training, bool per_sample) {
  check_probability(p);
  if (!training || p == 0) return x;
  return drop(x, per_sample, {p, op_random::next_key(), op_random::step_tensor(x.device())});
}

}  // namespace

Tensor dropout(const Tensor& x, double p, bool training) { return drop(x, p, training, false); }
Tensor drop_path(const Tensor& x, double p, bool training) { return drop(x, p, training, true); }
Tensor drop_path(const Tensor& x, const BranchDrop& d) {
  check_probability(d.p);
  return d.p == 0 ? x : drop(x, true, d);
}

OCCAM_REGISTER(dropout, Dropout);

}  // namespace occam
