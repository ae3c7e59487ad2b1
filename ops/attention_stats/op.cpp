#include "ops/attention_stats/op.h"

#include <cmath>

#include "core/grad_mode.h"
#include "ops/attention_stats/cpu.h"
#include "ops/attention_stats/kernel.h"
#include "ops/op.h"

namespace occam {
namespace {

kernels::MapLayout layout_of(const char* op, int64_t t, const AttentionStatsOptions& o, const Tensor& in) {
  OCCAM_CHECK(o.prefix_tokens >= 0 && o.grid_h > 0 && o.grid_w > 0 && o.grid_h <= t && o.grid_w <= t &&
                  o.prefix_tokens + o.grid_h * o.grid_w == t,
              ErrorKind::shape,
              "{}: {} prefix token(s) and a grid of {} x {} patches do not make the {} tokens of {}", op,
              o.prefix_tokens, o.grid_h, o.grid_w, t, in.shape().str());
  OCCAM_CHECK(!in.is_cuda() || t <= kernels::kMostTokens, ErrorKind::shape,
              "{}: {} tokens, at most {} on a GPU", op, t, kernels::kMostTokens);
  return {
      .t = t, .prefix = o.prefix_tokens, .grid_h = o.grid_h, .grid_w = o.grid_w, .order = o.order_metrics};
}

DType result_dtype(const Tensor& in) { return in.dtype() == DType::f64 ? DType::f64 : DType::f32; }

template <class T>
kernels::MapSource<T> scores_of(const Tensor& qkv, double scale) {
  return {.b = qkv.size(0), .h = qkv.size(3), .d = qkv.size(4), .scale = scale, .qkv = qkv.data<T>()};
}

/// `source` makes the MapSource<T> of the input.
template <class Source>
Tensor stats(const Tensor& in, int64_t maps_b, int64_t maps_h, const kernels::MapLayout& layout,
             const Source& source) {
  Tensor out =
      empty({maps_b, maps_h, kAttentionRowSets, kAttentionStatCount}, {result_dtype(in), in.device()});
  if (out.numel() == 0) return out;
  if (in.is_cuda()) {
    dispatch_cuda(in.dtype(), [&]<class T>() {
      OCCAM_ON_CUDA({
        Tensor scratch =
            empty({kernels::attention_stats_scratch(maps_b * maps_h, layout)}, {DType::f64, in.device()});
        kernels::attention_stats(source.template operator()<T>(), layout, scratch.data<double>(),
                                 out.data<float>(), current_stream(in.device()).handle);
      });
    });
  } else {
    dispatch_float(in.dtype(), [&]<class T>() {
      attention_stats_cpu(source.template operator()<T>(), layout, out.data<T>());
    });
  }
  return out;
}

/// Reading, sorting and summing a row's entries, beside the scores.
double cost_of_rows(double entries) { return 40 * entries; }

struct AttentionStatsOp {
  struct Attrs {
    AttentionStatsOptions options;
    double scale = 1;
  };
  // Cast::any: the statistics of bf16 activations stay f32.
  static constexpr OpInfo info{.name = "attention_stats",
                               .contract = "qkv: b t 3 h d -> b h 3 16",
                               .cast = Cast::any,
                               .bound = Bound::compute};
  static constexpr NonDifferentiable kNoGradient{"statistics count and sort entries; they serve reports"};

  static Outs forward(Ctx&, In in, const Attrs& a) {
    const Tensor& qkv = in[0];
    kernels::MapLayout layout = layout_of("attention_stats", qkv.size(1), a.options, qkv);
    return {
        stats(qkv, qkv.size(0), qkv.size(3), layout, [&]<class T>() { return scores_of<T>(qkv, a.scale); })};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    const Shape& s = in[0];
    double entries = double(s[0]) * double(s[3]) * double(s[1]) * double(s[1]);
    return {2 * entries * double(s[4]) + cost_of_rows(entries), bytes_of(in, dtype) * 2 / 3};
  }
};

struct RowStatsOp {
  struct Attrs {
    AttentionStatsOptions options;
  };
  static constexpr OpInfo info{.name = "row_stats", .contract = "a: b h t t -> b h 3 16", .cast = Cast::any};
  static constexpr NonDifferentiable kNoGradient{"statistics count and sort entries; they serve reports"};

  static Outs forward(Ctx&, In in, const Attrs& attrs) {
    const Tensor& a = in[0];
    kernels::MapLayout layout = layout_of("row_stats", a.size(2), attrs.options, a);
    return {stats(a, a.size(0), a.size(1), layout, [&]<class T>() {
      return kernels::MapSource<T>{.b = a.size(0), .h = a.size(1), .maps = a.data<T>()};
    })};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {cost_of_rows(double(in[0].numel())), bytes_of(in, dtype)};
  }
};

struct AttentionMapMoments {
  struct Attrs {
    double scale = 1;
  };
  static constexpr OpInfo info{.name = "attention_map_moments",
                               .contract = "qkv: b t 3 h d -> 2 h t t",
                               .cast = Cast::any,
                               .bound = Bound::compute};
  static constexpr NonDifferentiable kNoGradient{"mean maps serve reports"};

  static Outs forward(Ctx&, In in, const Attrs& a) {
    const Tensor& qkv = in[0];
    int64_t t = qkv.size(1);
    Tensor out = empty({2, qkv.size(3), t, t}, {result_dtype(qkv), qkv.device()});
    if (out.numel() == 0) return {out};
    if (qkv.is_cuda()) {
      OCCAM_CHECK(t <= kernels::kMostMomentTokens, ErrorKind::shape,
                  "attention_map_moments: {} tokens, at most {} on a GPU", t, kernels::kMostMomentTokens);
      dispatch_cuda(qkv.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::attention_moments(scores_of<T>(qkv, a.scale), t, out.data<float>(),
                                                 current_stream(qkv.device()).handle));
      });
    } else {
      dispatch_float(qkv.dtype(),
                     [&]<class T>() { attention_moments_cpu(scores_of<T>(qkv, a.scale), t, out.data<T>()); });
    }
    return {out};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    const Shape& s = in[0];
    double entries = double(s[3]) * double(s[1]) * double(s[1]);
    return {double(s[0]) * entries * (2 * double(s[4]) + 8), bytes_of(in, dtype) * 2 / 3 + 8 * entries};
  }
};

double default_scale(const Tensor& qkv) {
  return qkv.rank() == 5 ? 1 / std::sqrt(double(qkv.size(4))) : 1;  // else the contract speaks
}

}  // namespace

Tensor attention_stats(const Tensor& qkv, const AttentionStatsOptions& options, std::optional<double> scale) {
  NoGrad no_grad;
  return apply<AttentionStatsOp>({qkv}, {options, scale.value_or(default_scale(qkv))})[0];
}

Tensor row_stats(const Tensor& a, const AttentionStatsOptions& options) {
  NoGrad no_grad;
  return apply<RowStatsOp>({a}, {options})[0];
}

Tensor attention_map_moments(const Tensor& qkv, std::optional<double> scale) {
  NoGrad no_grad;
  return apply<AttentionMapMoments>({qkv}, {scale.value_or(default_scale(qkv))})[0];
}

std::vector<double> data_dependence(const Tensor& moments, int64_t images) {
  OCCAM_CHECK(moments.rank() == 4 && moments.size(0) == 2 && moments.size(2) == moments.size(3) && images > 0,
              ErrorKind::shape, "data_dependence: moments [2,h,t,t] of one image or more, not {} of {}",
              moments.shape().str(), images);
  std::vector<double> v = moments.to_vector<double>(), result;
  int64_t h = moments.size(1), entries = moments.size(2) * moments.size(3);
  for (int64_t head = 0; head < h; ++head) {
    const double *sum = v.data() + head * entries, *squares = sum + h * entries;
    double mean = 0, mean_squares = 0, squares_of_means = 0;
    for (int64_t i = 0; i < entries; ++i) {
      double a = sum[i] / double(images);
      mean += a, squares_of_means += a * a, mean_squares += squares[i] / double(images);
    }
    double n = double(entries), total = mean_squares / n - (mean / n) * (mean / n);
    double between = (mean_squares - squares_of_means) / n;
    // What rounding of f32 sums leaves of equal entries is no variance.
    double noise = 1e-6 * mean_squares / n;
    result.push_back(total > noise ? std::min(1.0, std::max(0.0, between / total)) : NAN);
  }
  return result;
}

OCCAM_REGISTER(attention_stats, AttentionStatsOp, RowStatsOp, AttentionMapMoments);

}  // namespace occam
