#include "ops/activation/op.h"

#include "ops/activation/kernel.h"
#include "ops/op.h"

namespace occam {
namespace {

using kernels::Activation;

constexpr const char* name_of(Activation f) {
  constexpr const char* names[] = {"gelu", "gelu_tanh", "silu", "sigmoid",     "tanh",
                                   "relu", "exp",       "log",  "elu_plus_one"};
  return names[size_t(f)];
}

template <Activation F>
struct Activate {
  struct Attrs {};
  static constexpr OpInfo info{.name = name_of(F), .contract = "x: ... -> ..."};

  static Outs forward(Ctx& c, In in, const Attrs&) {
    const Tensor& x = in[0];
    Tensor y = empty_like(x);
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::activation_fwd(F, x.data<T>(), y.data<T>(), x.numel(),
                                              current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(),
                     [&]<class T>() { kernels::activation_fwd_cpu(F, x.data<T>(), y.data<T>(), x.numel()); });
    }
    c.save({x});
    return {y};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor x = c.saved(0), gx = empty_like(x);
    if (x.is_cuda()) {
      dispatch_cuda(x.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::activation_bwd(F, x.data<T>(), gy[0].data<T>(), gx.data<T>(), x.numel(),
                                              current_stream(x.device()).handle));
      });
    } else {
      dispatch_float(x.dtype(), [&]<class T>() {
        kernels::activation_bwd_cpu(F, x.data<T>(), gy[0].data<T>(), gx.data<T>(), x.numel());
      });
    }
    return {gx};
  }
  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    return {10 * double(in[0].numel()), 2 * bytes_of(in, dtype)};
  }
};

}  // namespace

Tensor gelu(const Tensor& x) { return apply<Activate<Activation::gelu>>({x})[0]; }
Tensor gelu_tanh(const Tensor& x) { return apply<Activate<Activation::gelu_tanh>>({x})[0]; }
Tensor silu(const Tensor& x) { return apply<Activate<Activation::silu>>({x})[0]; }
Tensor sigmoid(const Tensor& x) { return apply<Activate<Activation::sigmoid>>({x})[0]; }
Tensor tanh(const Tensor& x) { return apply<Activate<Activation::tanh>>({x})[0]; }
Tensor relu(const Tensor& x) { return apply<Activate<Activation::relu>>({x})[0]; }
Tensor exp(const Tensor& x) { return apply<Activate<Activation::exp>>({x})[0]; }
Tensor log(const Tensor& x) { return apply<Activate<Activation::log>>({x})[0]; }
Tensor elu_plus_one(const Tensor& x) { return apply<Activate<Activation::elu_plus_one>>({x})[0]; }

OCCAM_REGISTER(activation, Activate<Activation::gelu>, Activate<Activation::gelu_tanh>,
               Activate<Activation::silu>, Activate<Activation::sigmoid>, Activate<Activation::tanh>,
               Activate<Activation::relu>, Activate<Activation::exp>, Activate<Activation::log>,
               Activate<Activation::elu_plus_one>);

}  // namespace occam
