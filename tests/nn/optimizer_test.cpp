#include "nn/optim/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/grad_mode.h"
#include "nn/ema/ema.h"
#include "nn/plan.h"
#include "nn/sched/schedule.h"
#include "ops/elementwise/op.h"
#include "ops/reduce/op.h"

namespace occam {
namespace {

/// loss = sum of (w - 1)^2, with a bias beside it.
class Bowl : public Module {
 public:
  Bowl() : weight_(param("weight", {2, 3}, constant(3))), bias_(param("bias", {3}, constant(-2))) {
    initialize(*this, 0);
  }
  const char* kind() const override { return "Bowl"; }
  Shape plan(const Shape& x, Plan&) const override { return x; }
  Tensor loss() {
    Tensor d = add_scalar(weight_.value() + bias_.value(), -1);
    return sum(d * d);
  }
  Parameter& weight() { return weight_; }

 protected:
  Tensor forward(const Tensor& x) override { return x; }

 private:
  static Init constant(double value) {
    return [value](const Tensor& t, uint64_t) { Tensor(t).fill_(value); };
  }
  Parameter &weight_, &bias_;
};

TEST(Optimizer, ClippingScalesTheWholeGradient) {
  Bowl bowl;
  Optimizer optimizer(bowl, {.name = "sgd", .lr = 0.5, .weight_decay = 0, .momentum = 0, .clip = 1.5});
  Tensor loss = bowl.loss();
  backward(loss);
  // w + b - 1 = 0, so the gradient is 0; move away first.
  EXPECT_EQ(loss.item(), 0);
  {
    NoGrad no_grad;
    detach(bowl.weight().master()).fill_(4);
  }
  optimizer.zero_grad();
  backward(bowl.loss());
  optimizer.step(0.5);
  // Gradients: 2 for each of six weights, 4 for each of three biases; norm sqrt(24 + 48).
  double norm = std::sqrt(72.0);
  EXPECT_NEAR(optimizer.gradient_norm(), norm, 1e-5);
  EXPECT_NEAR(bowl.weight().master().to_vector<double>()[0], 4 - 0.5 * 2 * 1.5 / (norm + 1e-6), 1e-6);
}

TEST(Optimizer, NonFiniteGradientLeavesEverythingAsItWas) {
  Bowl bowl;
  Optimizer optimizer(bowl, {.lr = 0.1});
  set_grad(bowl.weight().master(), full({2, 3}, NAN));
  optimizer.step(0.1);
  EXPECT_FALSE(optimizer.last_step_finite());
  EXPECT_EQ(bowl.weight().master().to_vector<double>()[0], 3);
  for (const auto& [name, tensor] : optimizer.state()) {
    if (name == "scalars") continue;
    EXPECT_EQ(tensor.to_vector<double>()[0], 0) << name;
  }
}

TEST(Optimizer, DecayFollowsTimm) {
  EXPECT_TRUE(has_weight_decay("blocks.0.attn.qkv.weight", {12, 4}));
  EXPECT_FALSE(has_weight_decay("blocks.0.attn.qkv.bias", {12}));
  EXPECT_FALSE(has_weight_decay("norm.weight", {4}));
  EXPECT_FALSE(has_weight_decay("pos_embed", {1, 5, 4}));
  EXPECT_FALSE(has_weight_decay("cls_token", {1, 1, 4}));
  EXPECT_FALSE(has_weight_decay("blocks.0.attn.rnn.bias_ih", {2, 3, 32}));
}

TEST(Ema, SwapTwiceRestores) {
  Bowl bowl;
  Ema ema(bowl, 0.75);
  {
    NoGrad no_grad;
    detach(bowl.weight().master()).fill_(7);
  }
  ema.update();
  {
    UseEma averages(&ema);
    EXPECT_EQ(bowl.weight().master().to_vector<double>()[0], 0.75 * 3 + 0.25 * 7);
  }
  EXPECT_EQ(bowl.weight().master().to_vector<double>()[0], 7);
}

TEST(Schedule, WarmupThenCosine) {
  ScheduleConfig c{.name = "cosine", .warmup = 1, .warmup_lr = 0, .min_lr = 0.125};
  EXPECT_EQ(learning_rate(c, 1, 0, 30, 10), 0);
  EXPECT_DOUBLE_EQ(learning_rate(c, 1, 5, 30, 10), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(c, 1, 10, 30, 10), 1);
  EXPECT_DOUBLE_EQ(learning_rate(c, 1, 20, 30, 10), 0.125 + 0.875 / 2);
  EXPECT_DOUBLE_EQ(learning_rate(c, 1, 30, 30, 10), 0.125);
  c.name = "constant";
  EXPECT_EQ(learning_rate(c, 1, 29, 30, 10), 1);
}

}  // namespace
}  // namespace occam
