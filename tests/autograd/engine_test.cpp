#include "autograd/engine.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "autograd/apply.h"
#include "autograd/node.h"
#include "core/check.h"
#include "core/grad_mode.h"

namespace occam {
namespace {

/// y = x0 * x1, and a second output x0 + x1.
struct MulAdd {
  struct Attrs {};
  static constexpr OpInfo info{.name = "mul_add", .contract = "a: ..., b: ... -> ..., ..."};
  static Outs forward(Ctx& c, In in, const Attrs&) {
    Tensor product = raw::clone(in[0]), sum = raw::clone(in[0]);
    for (int64_t i = 0; i < product.numel(); ++i)
      product.data<float>()[i] *= in[1].data<float>()[i], sum.data<float>()[i] += in[1].data<float>()[i];
    c.save({in[0], in[1]});
    return {product, sum};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    Grads g{zeros(c.shape_of(0)), zeros(c.shape_of(1))};
    Tensor a = c.saved(0), b = c.saved(1);
    for (int64_t i = 0; i < a.numel(); ++i) {
      float p = gy[0] ? gy[0].data<float>()[i] : 0, s = gy[1] ? gy[1].data<float>()[i] : 0;
      g[0].data<float>()[i] = p * b.data<float>()[i] + s;
      g[1].data<float>()[i] = p * a.data<float>()[i] + s;
    }
    return g;
  }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }
};

struct Floor {
  struct Attrs {};
  static constexpr OpInfo info{.name = "floor_to_int", .contract = "x: ... -> ..."};
  static constexpr NonDifferentiable kNoGradient{"rounding is flat"};
  static Outs forward(Ctx&, In in, const Attrs&) { return {raw::clone(in[0])}; }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }
};

struct WrongShape {
  struct Attrs {};
  static constexpr OpInfo info{.name = "wrong_shape", .contract = "x: ... -> ..."};
  static Outs forward(Ctx&, In in, const Attrs&) { return {raw::clone(in[0])}; }
  static Grads backward(Ctx&, GradsOut) { return {zeros({1, 1, 1})}; }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }
};

// An op with neither a backward nor a declared reason is not an op.
struct Forgot {
  struct Attrs {};
  static constexpr OpInfo info{.name = "forgot", .contract = "x: ... -> ..."};
  static Outs forward(Ctx&, In in, const Attrs&) { return {in[0]}; }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }
};
static_assert(!IsOp<Forgot>);
static_assert(IsOp<MulAdd> && IsOp<Floor>);

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

Tensor leaf(std::vector<float> v) {
  Tensor t = from_vector(v);
  set_requires_grad(t, true);
  return t;
}

TEST(Engine, DiamondFanOutAndAccumulation) {
  Tensor x = leaf({3});
  auto squared = apply<MulAdd>({x, x});              // x^2, 2x
  auto y = apply<MulAdd>({squared[0], squared[1]});  // 2x^3
  backward(y[0]);
  EXPECT_FLOAT_EQ(float(grad_of(x).item()), 6 * 9);
  backward(apply<MulAdd>({x, x})[1]);
  EXPECT_FLOAT_EQ(float(grad_of(x).item()), 6 * 9 + 2);
}

TEST(Engine, LongChainNeedsNoRecursion) {
  Tensor x = leaf({1}), one = from_vector(std::vector<float>{1}), y = x;
  for (int i = 0; i < 100000; ++i) y = apply<MulAdd>({y, one})[0];
  backward(y);
  EXPECT_EQ(grad_of(x).item(), 1);
}

TEST(Engine, SecondBackwardSaysSo) {
  Tensor x = leaf({2});
  Tensor y = apply<MulAdd>({x, x})[0];
  backward(y);
  EXPECT_NE(message_of([&] { backward(y); }).find("mul_add: backward ran already"), std::string::npos);
}

TEST(Engine, ChangeOfASavedInputIsCaught) {
  Tensor x = leaf({2}), w = from_vector(std::vector<float>{5});
  Tensor y = apply<MulAdd>({x, w})[0];
  w.fill_(1);
  EXPECT_NE(message_of([&] { backward(y); }).find("modified in place"), std::string::npos);
}

TEST(Engine, InPlaceOnTrackedTensorIsRefused) {
  Tensor x = leaf({2});
  EXPECT_NE(message_of([&] { x.fill_(1); }).find("records gradients"), std::string::npos);
  EXPECT_NE(message_of([&] { raw::reshape(x, {1, 1}); }).find("records gradients"), std::string::npos);
  NoGrad no_grad;
  EXPECT_NO_THROW(x.fill_(1));
}

TEST(Engine, NonDifferentiableOpStopsBackwardWithItsReason) {
  Tensor x = leaf({2});
  Tensor y = apply<Floor>({x})[0];
  EXPECT_NE(message_of([&] { backward(y); }).find("rounding is flat"), std::string::npos);
}

TEST(Engine, GradientShapeIsChecked) {
  Tensor x = leaf({2});
  EXPECT_NE(message_of([&] { backward(apply<WrongShape>({x})[0]); }).find("wrong_shape backward made"),
            std::string::npos);
}

TEST(Engine, NoGraphNoBackward) {
  Tensor x = from_vector(std::vector<float>{1});
  EXPECT_NE(message_of([&] {
              backward(apply<MulAdd>({x, x})[0]);
            }).find("depends on no tensor"),
            std::string::npos);
}

TEST(Engine, ShadowSendsGradientsToItsMaster) {
  Tensor master = leaf({1.5f, -2});
  Tensor shadow = raw::to(detach(master), DType::bf16);
  share_grad(shadow, master);
  Tensor x = raw::to(from_vector(std::vector<float>{4, 0.5f}), DType::bf16);
  Tensor y = apply<MulAdd>({shadow, x})[0];
  EXPECT_EQ(y.dtype(), DType::bf16);
  backward(y, ones({2}, {DType::bf16, kCPU}));
  EXPECT_EQ(grad_of(master).dtype(), DType::f32);
  EXPECT_EQ(grad_of(master).to_vector<float>(), (std::vector<float>{4, 0.5f}));
}

TEST(Engine, AnomalyModeNamesTheOp) {
  Tensor x = leaf({2}), w = from_vector(std::vector<float>{std::numeric_limits<float>::infinity()});
  Tensor y = apply<MulAdd>({x, w})[0];
  AnomalyMode anomaly;
  EXPECT_NE(message_of([&] { backward(y); }).find("mul_add backward made a inf"), std::string::npos);
}

TEST(Apply, MixedDtypesAreNamed) {
  Tensor x = from_vector(std::vector<float>{1}), w = from_vector(std::vector<double>{1});
  EXPECT_NE(message_of([&] {
              apply<MulAdd>({x, w});
            }).find("mul_add: a is f32 but b is f64"),
            std::string::npos);
}

}  // namespace
}  // namespace occam
