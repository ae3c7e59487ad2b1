#include "ops/layer_norm/op.h"

#include <algorithm>
#include <cmath>

#include "core/philox.h"
#include "ops/layer_norm/kernel.h"
#include "ops/op.h"

namespace occam {
namespace {

template <class T>
void forward_cpu(const T* x, const T* weight, const T* bias, T* y, T* mean, T* rstd, int64_t rows, int64_t c,
                 T eps) {
#pragma omp parallel for if (rows * c > 16384)
  for (int64_t r = 0; r < rows; ++r) {
    const T* in = x + r * c;
    T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < c; ++i) sum += in[i];
    T m = sum / T(c);
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < c; ++i) squares += (in[i] - m) * (in[i] - m);
    T s = 1 / std::sqrt(squares / T(c) + eps);
    for (int64_t i = 0; i < c; ++i) y[r * c + i] = (in[i] - m) * s * weight[i] + bias[i];
    mean[r] = m, rstd[r] = s;
  }
}

/// gx = gsum + the norm's gradient; gy or gsum may be null.
template <class T>
void backward_x_cpu(const T* x, const T* weight, const T* gy, const T* gsum, const T* mean, const T* rstd,
                    T* gx, int64_t rows, int64_t c) {
#pragma omp parallel for if (rows * c > 16384)
  for (int64_t r = 0; r < rows; ++r) {
    T* out = gx + r * c;
    if (gsum)
      std::copy_n(gsum + r * c, c, out);
    else
      std::fill_n(out, c, T(0));
    if (!gy) continue;
    const T *in = x + r * c, *g = gy + r * c;
    T m = mean[r], s = rstd[r], a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (int64_t i = 0; i < c; ++i) a += g[i] * weight[i], b += g[i] * weight[i] * (in[i] - m) * s;
    a /= T(c), b /= T(c);
    for (int64_t i = 0; i < c; ++i) out[i] += s * (g[i] * weight[i] - a - (in[i] - m) * s * b);
  }
}

/// Tiles of columns, so that the sums do not depend on the number of threads; f64 sums over the rows.
template <class T>
void backward_params_cpu(const T* x, const T* gy, const T* mean, const T* rstd, T* gweight, T* gbias,
                         int64_t rows, int64_t c) {
  constexpr int64_t kTile = 64;
#pragma omp parallel for if (rows * c > 16384)
  for (int64_t start = 0; start < c; start += kTile) {
    int64_t count = std::min(kTile, c - start);
    double w[kTile] = {}, b[kTile] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const T *in = x + r * c + start, *g = gy + r * c + start;
      for (int64_t i = 0; i < count; ++i) w[i] += g[i] * (in[i] - mean[r]) * rstd[r], b[i] += g[i];
    }
    for (int64_t i = 0; i < count; ++i) gweight[start + i] = T(w[i]), gbias[start + i] = T(b[i]);
  }
}

/// y = x + drop(branch); x null: y = drop(branch).
template <class T>
void add_branch_cpu(const T* x, const T* branch, T* y, int64_t numel, int64_t samples, const BranchDrop& d) {
  const int64_t each = samples > 0 ? numel / samples : 0;
#pragma omp parallel for if (numel > 16384)
  for (int64_t s = 0; s < samples; ++s) {
    T scale = 1;
    if (d.p > 0) {
      auto now = uint64_t(*d.step.data<int64_t>());
      scale = philox_uniform(d.key, now, uint64_t(s)) >= float(d.p) ? T(1 / (1 - d.p)) : T(0);
    }
    for (int64_t i = s * each; i < (s + 1) * each; ++i) y[i] = (x ? x[i] : T(0)) + scale * branch[i];
  }
}

/// Drop path goes by axis 0; a single row is one sample.
int64_t samples_of(const Shape& x) { return x.rank() > 1 ? x[0] : 1; }

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
    if (branch)
      add_branch_cpu(x.data<T>(), branch.data<T>(), sum.data<T>(), x.numel(), samples_of(x.shape()), drop);
    forward_cpu((branch ? sum : x).data<T>(), weight.data<T>(), bias.data<T>(), n.y.data<T>(),
                n.mean.data<T>(), n.rstd.data<T>(), rows, c, T(eps));
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
      if (g.x)
        backward_x_cpu(x.data<T>(), weight.data<T>(), data(gy), data(gsum), n.mean.data<T>(),
                       n.rstd.data<T>(), g.x.data<T>(), rows, c);
      if (separate)
        add_branch_cpu<T>(nullptr, g.x.data<T>(), g.branch.data<T>(), x.numel(), samples_of(x.shape()), drop);
      if (wants.params && gy)
        backward_params_cpu(x.data<T>(), gy.data<T>(), n.mean.data<T>(), n.rstd.data<T>(), g.weight.data<T>(),
                            g.bias.data<T>(), rows, c);
      else if (wants.params)
        g.weight.zero_(), g.bias.zero_();
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
