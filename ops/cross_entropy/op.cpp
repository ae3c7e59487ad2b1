#include "ops/cross_entropy/op.h"

#include <algorithm>
#include <cmath>

#include "ops/cross_entropy/kernel.h"
#include "ops/op.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

using kernels::SoftTarget;

template <class T>
T lse_of(const T* x, int64_t k, T temperature) {
  T largest = *std::max_element(x, x + k), sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += std::exp((x[i] - largest) / temperature);
  return largest / temperature + std::log(sum);
}

template <class T>
T target_of(const SoftTarget<T, T>& t, int64_t row, int64_t i, int64_t k, T teacher_lse) {
  if (t.labels) return t.smoothing / T(k) + (i == t.labels[row] ? 1 - t.smoothing : T(0));
  if (t.targets) return t.targets[row * k + i];
  return std::exp(t.teacher[row * k + i] / t.temperature - teacher_lse);
}

template <class T>
void forward_cpu(const T* x, const SoftTarget<T, T>& t, T* loss, T* lse, T* teacher_lse, int64_t rows,
                 int64_t k) {
#pragma omp parallel for if (rows * k > 4096)
  for (int64_t row = 0; row < rows; ++row) {
    T normal = lse_of(x + row * k, k, t.temperature), sum = 0;
    T teacher = t.teacher ? lse_of(t.teacher + row * k, k, t.temperature) : T(0);
    for (int64_t i = 0; i < k; ++i) {
      T q = target_of(t, row, i, k, teacher);
      T log_q = t.teacher ? t.teacher[row * k + i] / t.temperature - teacher : T(0);
      if (q != 0) sum += q * (log_q - (x[row * k + i] / t.temperature - normal));
    }
    loss[row] = sum, lse[row] = normal, teacher_lse[row] = teacher;
  }
}

template <class T>
void backward_cpu(const T* x, const SoftTarget<T, T>& t, const T* lse, const T* teacher_lse, T gy, T scale,
                  T* gx, int64_t rows, int64_t k) {
#pragma omp parallel for if (rows * k > 4096)
  for (int64_t row = 0; row < rows; ++row) {
    T mass = 1;
    if (t.targets) {
      mass = 0;
      for (int64_t i = 0; i < k; ++i) mass += t.targets[row * k + i];
    }
    for (int64_t i = 0; i < k; ++i) {
      T p = std::exp(x[row * k + i] / t.temperature - lse[row]);
      gx[row * k + i] = gy * scale * (mass * p - target_of(t, row, i, k, teacher_lse[row]));
    }
  }
}

/// One op for the three forms of target: input 1 is labels, targets or teacher logits.
enum class Form : uint8_t { labels, targets, teacher };

template <Form F>
struct CrossEntropy {
  struct Attrs {
    double smoothing = 0, temperature = 1;
  };
  static constexpr OpInfo info{
      .name = F == Form::labels    ? "cross_entropy"
              : F == Form::targets ? "soft_cross_entropy"
                                   : "kl_div",
      .contract = F == Form::labels ? "logits: b k, labels: b -> ()" : "logits: b k, targets: b k -> ()",
      .cast = Cast::any};

  /// Input 1 as the kernels take it; on the CPU in the type of x.
  static Tensor prepared(const Tensor& x, const Tensor& second) {
    if constexpr (F == Form::targets)
      return raw::to(second, x.dtype() == DType::f64 ? DType::f64 : DType::f32);
    if constexpr (F == Form::teacher) return raw::to(second, x.dtype());
    return second;
  }
  template <class T, class A>
  static SoftTarget<T, A> target(const Tensor& second, const Attrs& a) {
    SoftTarget<T, A> t;
    t.smoothing = A(a.smoothing), t.temperature = A(a.temperature);
    if constexpr (F == Form::labels) t.labels = second.data<int64_t>();
    if constexpr (F == Form::targets) t.targets = second.data<A>();
    if constexpr (F == Form::teacher) t.teacher = second.data<T>();
    return t;
  }

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    const Tensor& x = in[0];
    int64_t rows = x.size(0), k = x.size(1);
    OCCAM_CHECK(rows > 0 && k > 0, ErrorKind::shape, "{}: logits {} are empty", info.name, x.shape().str());
    if constexpr (F == Form::labels) {
      OCCAM_CHECK(in[1].dtype() == DType::i64, ErrorKind::shape, "cross_entropy: labels are {}, expected i64",
                  name_of(in[1].dtype()));
      if (x.is_cpu())
        for (int64_t i = 0; i < rows; ++i)
          OCCAM_CHECK(in[1].data<int64_t>()[i] >= 0 && in[1].data<int64_t>()[i] < k, ErrorKind::shape,
                      "cross_entropy: label {} of row {} is outside [0, {})", in[1].data<int64_t>()[i], i, k);
    }
    Tensor second = prepared(x, in[1]);
    DType wide = x.dtype() == DType::f64 ? DType::f64 : DType::f32;
    TensorOptions statistics{wide, x.device()};
    Tensor loss = empty({rows}, statistics), lse = empty({rows}, statistics),
           teacher_lse = empty({rows}, statistics);
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::cross_entropy_fwd(x.data<T>(), target<T, float>(second, a), loss.data<float>(),
                                                 lse.data<float>(), teacher_lse.data<float>(), rows, k,
                                                 current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        forward_cpu(x.data<T>(), target<T, T>(second, a), loss.data<T>(), lse.data<T>(),
                    teacher_lse.data<T>(), rows, k);
      });
    }
    c.save({x, second, lse, teacher_lse});
    Tensor mean = raw::sum_to_shape(loss, {1});
    return {raw::reshape(scaled(mean, a.temperature * a.temperature / double(rows)), {})};
  }

  /// A scalar tensor times a number, in place of a fresh tensor.
  static Tensor scaled(Tensor t, double factor) {
    Tensor y = zeros(t.shape(), options_of(t));
    return y.add_(t, factor);
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    const Attrs& a = c.attrs<Attrs>();
    Tensor x = c.saved(0), second = c.saved(1), lse = c.saved(2), teacher_lse = c.saved(3),
           gx = empty_like(x);
    OCCAM_CHECK(!c.needs(1), ErrorKind::internal, "{}: no gradient for the targets; detach them", info.name);
    int64_t rows = x.size(0), k = x.size(1);
    // d/dx of T^2 f(x / T) is T f'
    double scale = a.temperature / double(rows);
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::cross_entropy_bwd(x.data<T>(), target<T, float>(second, a), lse.data<float>(),
                                                 teacher_lse.data<float>(), gy[0].data<float>(), float(scale),
                                                 gx.data<T>(), rows, k, current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        backward_cpu(x.data<T>(), target<T, T>(second, a), lse.data<T>(), teacher_lse.data<T>(),
                     *gy[0].data<T>(), T(scale), gx.data<T>(), rows, k);
      });
    }
    return {gx, Tensor()};
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {6 * double(in[0].numel()), bytes_of(in, dtype)};
  }
};

}  // namespace

Tensor cross_entropy(const Tensor& logits, const Tensor& labels, double smoothing) {
  OCCAM_CHECK(smoothing >= 0 && smoothing < 1, ErrorKind::usage,
              "cross_entropy: smoothing {} is outside [0, 1)", smoothing);
  return apply<CrossEntropy<Form::labels>>({logits, labels}, {smoothing, 1})[0];
}
Tensor soft_cross_entropy(const Tensor& logits, const Tensor& targets) {
  return apply<CrossEntropy<Form::targets>>({logits, targets})[0];
}
Tensor kl_div(const Tensor& student, const Tensor& teacher, double temperature) {
  OCCAM_CHECK(temperature > 0, ErrorKind::usage, "kl_div: temperature {} must be above 0", temperature);
  return apply<CrossEntropy<Form::teacher>>({student, teacher}, {0, temperature})[0];
}

OCCAM_REGISTER(cross_entropy, CrossEntropy<Form::labels>, CrossEntropy<Form::targets>,
               CrossEntropy<Form::teacher>);

}  // namespace occam
