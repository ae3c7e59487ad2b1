#include "ops/log_softmax/op.h"

#include <algorithm>
#include <cmath>

#include "ops/log_softmax/kernel.h"
#include "ops/op.h"

namespace occam {
namespace {

template <class T>
void forward_cpu(const T* x, T* y, int64_t rows, int64_t n) {
#pragma omp parallel for if (rows * n > 4096)
  for (int64_t r = 0; r < rows; ++r) {
    const T* in = x + r * n;
    T largest = *std::max_element(in, in + n), sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(in[i] - largest);
    T log_sum = std::log(sum);
    for (int64_t i = 0; i < n; ++i) y[r * n + i] = in[i] - largest - log_sum;
  }
}

template <class T>
void backward_cpu(const T* y, const T* gy, T* gx, int64_t rows, int64_t n) {
#pragma omp parallel for if (rows * n > 4096)
  for (int64_t r = 0; r < rows; ++r) {
    T sum = 0;
    for (int64_t i = r * n; i < (r + 1) * n; ++i) sum += gy[i];
    for (int64_t i = r * n; i < (r + 1) * n; ++i) gx[i] = gy[i] - std::exp(y[i]) * sum;
  }
}

struct LogSoftmax {
  struct Attrs {};  // always the last axis
  static constexpr OpInfo info{.name = "log_softmax", .contract = "x: ... n -> ... n"};

  static Outs forward(Ctx& c, In in, const Attrs&) {
    const Tensor& x = in[0];
    int64_t n = x.size(-1);
    OCCAM_CHECK(n > 0, ErrorKind::shape, "log_softmax: axis `n` of x {} is empty", x.shape().str());
    Tensor y = empty_like(x);
    int64_t rows = x.numel() / n;
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(
            kernels::log_softmax_fwd(x.data<T>(), y.data<T>(), rows, n, current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() { forward_cpu(x.data<T>(), y.data<T>(), rows, n); });
    }
    c.save({y});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor y = c.saved(0), gx = empty_like(y);
    int64_t n = y.size(-1), rows = y.numel() / n;
    if (y.is_cuda()) {
      dispatch_cuda(y.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::log_softmax_bwd(y.data<T>(), gy[0].data<T>(), gx.data<T>(), rows, n,
                                               current_stream(y.device()).handle));
      });
    } else {
      dispatch_float(y.dtype(),
                     [&]<class T>() { backward_cpu(y.data<T>(), gy[0].data<T>(), gx.data<T>(), rows, n); });
    }
    return {gx};
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {5 * double(in[0].numel()), 2 * bytes_of(in, dtype)};
  }
};

}  // namespace

Tensor log_softmax(const Tensor& x, int axis) {
  OCCAM_CHECK(x.shape().wrap(axis) == x.rank() - 1, ErrorKind::shape,
              "log_softmax: only the last axis, not axis {} of {}", axis, x.shape().str());
  return apply<LogSoftmax>({x})[0];
}

OCCAM_REGISTER(log_softmax, LogSoftmax);

}  // namespace occam
