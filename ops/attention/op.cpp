#include "ops/attention/op.h"

#include <cmath>

#include "ops/attention/cpu.h"
#include "ops/attention/kernel.h"
#include "ops/op.h"

namespace occam {
namespace {

struct AttentionOp {
  struct Attrs {
    double scale = 1;
  };
  static constexpr OpInfo info{
      .name = "attention", .contract = "qkv: b t 3 h d, key_mask?: b t -> b t h d", .bound = Bound::compute};

  static Outs forward(Ctx& c, In in, const Attrs& a) {
    const Tensor &qkv = in[0], &mask = in[1];
    int64_t b = qkv.size(0), t = qkv.size(1), h = qkv.size(3), d = qkv.size(4);
    OCCAM_CHECK(d > 0, ErrorKind::shape, "attention: axis `d` of qkv {} is empty", qkv.shape().str());
    OCCAM_CHECK(!mask || mask.dtype() == DType::u8 || mask.dtype() == DType::bool_, ErrorKind::shape,
                "attention: key_mask is {}, where u8 or bool is needed", name_of(mask.dtype()));
    DType wide = qkv.dtype() == DType::f64 ? DType::f64 : DType::f32;
    Tensor y = empty({b, t, h, d}, options_of(qkv)), lse = empty({b, h, t}, {wide, qkv.device()});
    if (y.numel() > 0) {
      if (qkv.is_cuda()) {
        dispatch_cuda(qkv.dtype(), [&]<class T>() {
          OCCAM_ON_CUDA(kernels::attention_fwd<T>({.b = b,
                                                   .t = t,
                                                   .h = h,
                                                   .d = d,
                                                   .scale = float(a.scale),
                                                   .qkv = qkv.data<T>(),
                                                   .key_mask = mask_data(mask),
                                                   .y = y.data<T>(),
                                                   .lse = lse.data<float>()},
                                                  current_stream(qkv.device()).handle));
        });
      } else {
        dispatch_float(qkv.dtype(), [&]<class T>() {
          attention_forward_cpu<T>({.b = b,
                                    .t = t,
                                    .h = h,
                                    .d = d,
                                    .scale = a.scale,
                                    .qkv = qkv.data<T>(),
                                    .key_mask = mask_data(mask),
                                    .y = y.data<T>(),
                                    .lse = lse.data<T>()});
        });
      }
    }
    c.save({qkv, mask, y, lse});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor qkv = c.saved(0), mask = c.saved(1), y = c.saved(2), lse = c.saved(3), gqkv = empty_like(qkv);
    int64_t b = qkv.size(0), t = qkv.size(1), h = qkv.size(3), d = qkv.size(4);
    double scale = c.attrs<Attrs>().scale;
    if (y.numel() == 0) return {gqkv, {}};
    if (qkv.is_cuda()) {
      Tensor delta = empty_like(lse);
      dispatch_cuda(qkv.dtype(), [&]<class T>() {
        OCCAM_ON_CUDA(kernels::attention_bwd<T>({.b = b,
                                                 .t = t,
                                                 .h = h,
                                                 .d = d,
                                                 .scale = float(scale),
                                                 .qkv = qkv.data<T>(),
                                                 .key_mask = mask_data(mask),
                                                 .y = y.data<T>(),
                                                 .lse = lse.data<float>(),
                                                 .gy = gy[0].data<T>(),
                                                 .delta = delta.data<float>(),
                                                 .gqkv = gqkv.data<T>()},
                                                current_stream(qkv.device()).handle));
      });
    } else {
      dispatch_float(qkv.dtype(), [&]<class T>() {
        attention_backward_cpu<T>({.b = b,
                                   .t = t,
                                   .h = h,
                                   .d = d,
                                   .scale = scale,
                                   .qkv = qkv.data<T>(),
                                   .key_mask = mask_data(mask),
                                   .y = y.data<T>(),
                                   .lse = lse.data<T>(),
                                   .gy = gy[0].data<T>(),
                                   .gqkv = gqkv.data<T>()});
      });
    }
    return {gqkv, {}};
  }

  static Cost cost(Shapes in, DType dtype, const Attrs&) {
    const Shape& s = in[0];
    double scores = double(s[0]) * double(s[3]) * double(s[1]) * double(s[1]);
    return {scores * (4 * double(s[4]) + 5), double(s.numel()) * 4 / 3 * double(size_of(dtype))};
  }

 private:
  static const uint8_t* mask_data(const Tensor& mask) {
    return mask ? static_cast<const uint8_t*>(mask.data_ptr()) : nullptr;
  }
};

}  // namespace

Tensor attention(const Tensor& qkv, const Tensor& key_mask, std::optional<double> scale) {
  double by_size = qkv.rank() == 5 ? 1 / std::sqrt(double(qkv.size(4))) : 1;  // else the contract speaks
  return apply<AttentionOp>({qkv, key_mask}, {scale.value_or(by_size)})[0];
}

OCCAM_REGISTER(attention, AttentionOp);

}  // namespace occam
