#include "ops/layer_norm/op.h"

#include <algorithm>
#include <vector>

#include "core/philox.h"
#include "ops/layer_norm/cpu.h"
#include "ops/layer_norm/kernel.h"
#include "ops/op.h"

namespace occam {
namespace {

/// Drop path goes by axis 0; a single row is one sample.
int64_t samples_of(const Shape& x) { return x.rank() > 1 ? x[0] : 1; }

/// The scale of every sample's branch, drawn.
template <class T>
class DroppedRows {
 public:
  DroppedRows(const BranchDrop& d, const Shape& x) {
    if (d.p == 0) return;
    const int64_t samples = samples_of(x), each = x.numel() / std::max<int64_t>(samples * x[-1], 1);
    scales_.rows_of_sample = std::max<int64_t>(each, 1);
    const auto now = uint64_t(*d.step.data<int64_t>());
    for (int64_t s = 0; s < samples; ++s)
      drawn_.push_back(philox_uniform(d.key, now, uint64_t(s)) >= float(d.p) ? T(1 / (1 - d.p)) : T(0));
    scales_.of_sample = drawn_.data();
  }
  BranchScales<T> scales() const { return scales_; }

 private:
  std::vector<T> drawn_;
  BranchScales<T> scales_;
};

struct Norm {
  Tensor y, mean, rstd;
};

#if OCCAM_CUDA
kernels::RowDrop row_drop(const BranchDrop& d, const Shape& x) {
  if (d.p == 0) return {};
  int64_t rows_of_sample = x.numel() / std::max<int64_t>(samples_of(x) * x[-1], 1);
  return {float(d.p), d.key, d.step.data<int64_t>(), std::max<int64_t>(rows_of_sample, 1)};
}
#endif

/// Normalises x, or x + drop(branch), which is then written to `sum`.
Norm normalise(const char* op, const Tensor& x, const Tensor& branch, const Tensor& sum, const Tensor& weight,
               const Tensor& bias, double eps, const BranchDrop& drop) {
  int64_t c = x.size(-1);
  OCCAM_CHECK(c > 0, ErrorKind::shape, "{}: axis `c` of x {} is empty", op, x.shape().str());
  int64_t rows = x.numel() / c;
  TensorOptions wide{x.dtype() == DType::f64 ? DType::f64 : DType::f32, x.device()};
  Norm n{empty_like(x), empty({rows}, wide), empty({rows}, wide)};
  if (x.is_cuda()) {
    dispatch_cuda(x.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA({
        kernels::LayerNormForward<T> k{rows, c, float(eps), x.data<T>()};
        k.weight = weight.data<T>(), k.bias = bias.data<T>(), k.y = n.y.data<T>();
        k.mean = n.mean.data<float>(), k.rstd = n.rstd.data<float>();
        if (branch) {
          k.branch = branch.data<T>(), k.sum = sum.data<T>();
          k.drop = row_drop(drop, x.shape());
        }
        kernels::layer_norm_fwd(k, current_stream(x.device()).handle);
      });
    });
    return n;
  }
  dispatch_float(x.dtype(), [&]<class T>() {
    const DroppedRows<T> dropped(drop, x.shape());
    LayerNormForwardCpu<T> a{rows, c, T(eps), x.data<T>()};
    a.weight = weight.data<T>(), a.bias = bias.data<T>();
    a.y = n.y.data<T>(), a.mean = n.mean.data<T>(), a.rstd = n.rstd.data<T>();
    if (branch) a.branch = branch.data<T>(), a.sum = sum.data<T>(), a.scales = dropped.scales();
    layer_norm_forward_cpu(a);
  });
  return n;
}

/// Gradients of what was normalised (x), of the dropped branch (only where `drop` acts and it is wanted),
/// weight and bias.
struct NormGrads {
  Tensor x, branch, weight, bias;
};
struct NormWants {
  bool x = false, branch = false, params = false;
};

NormGrads gradients(const Tensor& x, const Tensor& weight, const Norm& n, const Tensor& gy,
                    const Tensor& gsum, NormWants wants, const BranchDrop& drop) {
  int64_t c = x.size(-1), rows = x.numel() / c;
  NormGrads g;
  const bool separate = wants.branch && drop.p > 0;
  if (wants.x || wants.branch) g.x = empty_like(x);
  if (separate) g.branch = empty_like(x);
  if (wants.params) g.weight = empty({c}, options_of(n.mean)), g.bias = empty({c}, options_of(n.mean));
  if (x.is_cuda()) {
    dispatch_cuda(x.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA({
        auto data = [](const Tensor& t) { return t ? t.data<T>() : nullptr; };
        kernels::LayerNormBackward<T> k{rows, c, x.data<T>(), weight.data<T>(), data(gy), data(gsum)};
        k.mean = n.mean.data<float>(), k.rstd = n.rstd.data<float>();
        k.gx = data(g.x), k.gbranch = data(g.branch);
        k.drop = row_drop(drop, x.shape());
        Tensor scratch;
        if (wants.params) {
          scratch = empty({kernels::layer_norm_scratch(rows, c)}, options_of(n.mean));
          k.gweight = g.weight.data<float>(), k.gbias = g.bias.data<float>(),
          k.scratch = scratch.data<float>();
        }
        kernels::layer_norm_bwd(k, current_stream(x.device()).handle);
      });
    });
  } else {
    dispatch_float(x.dtype(), [&]<class T>() {
      auto data = [](const Tensor& t) { return t ? t.data<T>() : nullptr; };
      const DroppedRows<T> dropped(separate ? drop : BranchDrop{}, x.shape());
      LayerNormBackwardCpu<T> a{rows, c, x.data<T>(), weight.data<T>(), data(gy), data(gsum)};
      a.mean = n.mean.data<T>(), a.rstd = n.rstd.data<T>(), a.scales = dropped.scales();
      a.gx = data(g.x), a.gbranch = data(g.branch);
      a.gweight = data(g.weight), a.gbias = data(g.bias);
      layer_norm_backward_cpu(a);
    });
  }
  if (wants.branch && !separate) g.branch = g.x;
  return g;
}

Cost norm_cost(Shapes in, DType dtype, double tensors) {
  double n = double(in[0].numel());
  return {8 * n, (tensors * n + 2 * double(in[0][-1])) * double(size_of(dtype))};
}

struct LayerNorm {
  struct Attrs {
    double eps = 1e-5;
  };
  static constexpr OpInfo info{.name = "layer_norm", .contract = "x: ... c, weight: c, bias: c -> ... c"};

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    Norm n = normalise("layer_norm", in[0], {}, {}, in[1], in[2], a.eps, {});
    c.save({in[0], in[1], n.mean, n.rstd});
    return {n.y};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    NormGrads g = gradients(c.saved(0), c.saved(1), {{}, c.saved(2), c.saved(3)}, gy[0], {},
                            {c.needs(0), false, c.needs(1) || c.needs(2)}, {});
    return {c.needs(0) ? g.x : Tensor(), c.needs(1) ? g.weight : Tensor(), c.needs(2) ? g.bias : Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) { return norm_cost(in, dtype, 2); }
};

struct AddLayerNorm {
  struct Attrs {
    double eps = 1e-5, drop = 0;
    uint64_t key = 0;
  };
  static constexpr OpInfo info{
      .name = "add_layer_norm",
      .contract = "x: ... c, branch: ... c, weight: c, bias: c, step?: 1 -> ... c, ... c"};

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    Tensor sum = empty_like(in[0]);
    Norm n = normalise("add_layer_norm", in[0], in[1], sum, in[2], in[3], a.eps, {a.drop, a.key, in[4]});
    c.save({sum, in[2], n.mean, n.rstd, in[4]});
    return {sum, n.y};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    const auto& a = c.attrs<Attrs>();
    NormGrads g = gradients(c.saved(0), c.saved(1), {{}, c.saved(2), c.saved(3)}, gy[1], gy[0],
                            {c.needs(0), c.needs(1), c.needs(2) || c.needs(3)}, {a.drop, a.key, c.saved(4)});
    return {c.needs(0) ? g.x : Tensor(), g.branch, c.needs(2) ? g.weight : Tensor(),
            c.needs(3) ? g.bias : Tensor(), Tensor()};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) { return norm_cost(in, dtype, 4); }
};

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return apply<LayerNorm>({x, weight, bias}, {eps})[0];
}

std::pair<Tensor, Tensor> add_layer_norm(const Tensor& x, const Tensor& branch, const Tensor& weight,
                                         const Tensor& bias, double eps, const BranchDrop& drop) {
  OCCAM_CHECK(drop.p >= 0 && drop.p < 1, ErrorKind::usage,
              "add_layer_norm: drop.p is {}, expected a value in [0, 1)", drop.p);
  // The step counter may have moved on by the time backward runs, so each call keeps its own copy.
  Tensor step = drop.p > 0 ? raw::clone(drop.step) : Tensor();
  Outs y = apply<AddLayerNorm>({x, branch, weight, bias, step}, {eps, drop.p, drop.key});
  return {y[0], y[1]};
}

OCCAM_REGISTER(layer_norm, LayerNorm, AddLayerNorm);

}  // namespace occam
