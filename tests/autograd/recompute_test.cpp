#include "autograd/recompute.h"

#include <gtest/gtest.h>

#include <functional>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/allocator.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "core/rng.h"
#include "core/scope.h"
#include "ops/activation/op.h"
#include "ops/dropout/op.h"
#include "ops/elementwise/op.h"
#include "ops/layer_norm/op.h"
#include "ops/linear/op.h"
#if OCCAM_CUDA
#include "core/cuda/capture.h"
#endif

namespace occam {
namespace {

constexpr int64_t kDim = 24;

/// A residual block with every kind of randomness; parameters may be f32 leaves behind bf16 shadows.
struct Part {
  Tensor w1, b1, w2, g, b;
  std::vector<Tensor> leaves;
  int calls = 0;

  Part(DType dtype, Device device, uint64_t seed) {
    Rng rng(seed, "part");
    auto parameter = [&](const Shape& shape) {
      Tensor master = raw::to(rand_normal(shape, 0, 0.3, rng), device);
      set_requires_grad(master, true);
      leaves.push_back(master);
      if (dtype == DType::f32) return master;
      Tensor shadow = raw::to(detach(master), dtype);
      share_grad(shadow, master);
      return shadow;
    };
    w1 = parameter({2 * kDim, kDim}), b1 = parameter({2 * kDim}), w2 = parameter({kDim, 2 * kDim});
    g = parameter({kDim}), b = parameter({kDim});
  }

  Tensor operator()(const Tensor& x) {
    ++calls;
    Scope scope("part");
    Tensor h = dropout(gelu(linear(layer_norm(x, g, b, 1e-5), w1, b1)), 0.3, true);
    return add(x, drop_path(dropout(linear(h, w2), 0.1, true), 0.4, true));
  }
};

enum class Way { plain, recomputed, nested };

Tensor pass(Part& part, const Tensor& x, Way way) {
  if (way == Way::plain) return part(x);
  auto call = [&part](const Tensor& in) { return part(in); };
  if (way == Way::recomputed) return recompute(call, x);
  return recompute([call](const Tensor& in) { return recompute(call, in); }, x);
}

class Recompute : public ::testing::TestWithParam<std::tuple<DType, DeviceType>> {
 protected:
  void SetUp() override {
    device.type = std::get<1>(GetParam());
    if (device.is_cuda() && !cuda_available()) GTEST_SKIP() << "no GPU";
  }
  /// Output, gradients of the input and of all parameters after two steps that accumulate, and numbers drawn
  /// afterwards.
  std::vector<std::vector<double>> results(Way way) {
    Part first(dtype, device, 1), second(dtype, device, 2);
    Rng rng(3, "x");
    Tensor x = raw::to(raw::to(rand_normal({6, 5, kDim}, 0, 1, rng), device), dtype);
    Tensor cotangent = raw::to(raw::to(rand_normal({6, 5, kDim}, 0, 1, rng), device), dtype);
    set_requires_grad(x, true);
    op_random::seed(7);
    std::vector<std::vector<double>> out;
    for (int step = 0; step < 2; ++step) {
      op_random::begin_step(device);
      Tensor y;
      {
        Scope scope("model");  // closed when backward runs
        y = pass(second, pass(first, mul_scalar(x, 1.5), way), way);
        y = dropout(y, 0.2, true);
      }
      if (step == 1) op_random::begin_step(device);  // backward must not see it
      backward(y, cotangent);
      out.push_back(y.to_vector<double>());
      out.push_back(dropout(cotangent, 0.5, true).to_vector<double>());
    }
    out.push_back(grad_of(x).to_vector<double>());
    for (const Part* part : {&first, &second})
      for (const Tensor& leaf : part->leaves) out.push_back(grad_of(leaf).to_vector<double>());
    calls = first.calls;
    return out;
  }
  Device device;
  const DType dtype = std::get<0>(GetParam());
  int calls = 0;
};

TEST_P(Recompute, BitsAreThoseWithoutIt) {
  const auto plain = results(Way::plain);
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(results(Way::recomputed), plain);
  EXPECT_EQ(calls, 4);
  EXPECT_EQ(results(Way::nested), plain);
  EXPECT_EQ(calls, 6);
}

TEST_P(Recompute, KeepsLessMemory) {
  auto peak = [&](bool recomputed) {
    std::vector<std::unique_ptr<Part>> parts;
    for (uint64_t i = 0; i < 8; ++i) parts.push_back(std::make_unique<Part>(dtype, device, i));
    Tensor x = full({64, 32, kDim}, 0.5, {dtype, device});
    set_requires_grad(x, true);
    Allocator& memory = allocator_for(device);
    const int64_t before = memory.stats().allocated;
    memory.reset_peak();
    Tensor y = x;
    for (auto& part : parts) y = pass(*part, y, recomputed ? Way::recomputed : Way::plain);
    backward(y, ones(y.shape(), options_of(y)));
    return memory.stats().peak_allocated - before;
  };
  // A part saves about ten times its input; kept are eight inputs and the saves of one part.
  EXPECT_LT(2 * peak(true), peak(false));
}

INSTANTIATE_TEST_SUITE_P(All, Recompute,
                         ::testing::Combine(::testing::Values(DType::f32, DType::bf16),
                                            ::testing::Values(DeviceType::cpu, DeviceType::cuda)),
                         [](const auto& i) {
                           return std::string(name_of(std::get<0>(i.param))) +
                                  (std::get<1>(i.param) == DeviceType::cpu ? "_cpu" : "_cuda");
                         });

Tensor leaf(std::vector<float> v) {
  Tensor t = from_vector(v);
  set_requires_grad(t, true);
  return t;
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

using Floats = std::vector<float>;

TEST(RecomputeCall, WithoutGradientsIsPlain) {
  int calls = 0;
  auto twice = [&](const Tensor& x) { return ++calls, mul_scalar(x, 2); };
  Tensor x = leaf({1, 2});
  {
    NoGrad no_grad;
    EXPECT_FALSE(requires_grad(recompute(twice, x)));
  }
  EXPECT_FALSE(requires_grad(recompute(twice, detach(x)))) << "nothing inside wants a gradient";
  EXPECT_EQ(calls, 2);
}

TEST(RecomputeCall, ReachesWhatTheFunctionReads) {
  Tensor x = leaf({1, 2}), w = leaf({3, 5}), v = leaf({7, 11});
  Tensor outer = mul(w, v);  // no leaf
  Tensor y = recompute([&](const Tensor& in) { return mul(in, mul(outer, w)); }, detach(x));
  ASSERT_TRUE(requires_grad(y)) << "by what it reads, though no input wants a gradient";
  backward(mul(y, outer), ones({2}));
  // x w^3 v^2
  EXPECT_EQ(grad_of(w).to_vector<float>(), (Floats{1 * 3 * 9 * 49, 2 * 3 * 25 * 121}));
  EXPECT_EQ(grad_of(v).to_vector<float>(), (Floats{1 * 27 * 2 * 7, 2 * 125 * 2 * 11}));
  EXPECT_FALSE(grad_of(x).defined());
}

TEST(RecomputeCall, SeveralResultsOfWhichOneIsUsed) {
  Tensor x = leaf({1, 2}), z = leaf({5, 6});
  auto fn = [](const std::vector<Tensor>& in) {
    return std::vector{mul(in[0], in[0]), add(in[0], in[1]), in[1]};
  };
  std::vector<Tensor> y = recompute(fn, {x, z});
  backward(y[0], ones({2}));
  EXPECT_EQ(grad_of(x).to_vector<float>(), (Floats{2, 4}));
  EXPECT_FALSE(grad_of(z).defined());
  zero_grad(x);
  y = recompute(fn, {x, z});
  backward(std::vector{y[1], y[2]}, std::vector{ones({2}), ones({2})});
  EXPECT_EQ(grad_of(x).to_vector<float>(), (Floats{1, 1}));
  EXPECT_EQ(grad_of(z).to_vector<float>(), (Floats{2, 2}));
}

TEST(RecomputeCall, MistakesAreNamed) {
  Tensor x = leaf({1, 2}), escaped;
  auto fn = [&](const Tensor& in) {
    escaped = mul_scalar(in, 3);
    return mul_scalar(escaped, 2);
  };
  Tensor h = mul_scalar(x, 1), y = recompute(fn, h);
  EXPECT_NE(message_of([&] { backward(escaped, ones({2})); }).find("otherwise than as a result"),
            std::string::npos);
  backward(y, ones({2}));
  EXPECT_EQ(grad_of(x).to_vector<float>(), (Floats{6, 6}));
  EXPECT_NE(message_of([&] { backward(y, ones({2})); }).find("backward ran already"), std::string::npos);

  h = mul_scalar(x, 1);
  y = recompute(fn, h);
  {
    NoGrad no_grad;
    h.fill_(4);
  }
  EXPECT_NE(message_of([&] { backward(y, ones({2})); }).find("modified in place"), std::string::npos);
}

TEST(RecomputeCall, TheRandomStateIsPutBackAfterAnError) {
  op_random::seed(1);
  bool fails = false;
  Tensor x = leaf({1, 2});
  Tensor y = recompute(
      [&](const Tensor& in) {
        Tensor out = dropout(in, 0.5, true);
        OCCAM_CHECK(!fails, ErrorKind::internal, "planned");
        return out;
      },
      x);
  const std::string path = Scope::path();
  const uint64_t next = op_random::position(kCPU).calls[path];
  fails = true;
  EXPECT_NE(message_of([&] { backward(y, ones({2})); }).find("planned"), std::string::npos);
  EXPECT_EQ(op_random::position(kCPU).calls[path], next);
  EXPECT_EQ(Scope::path(), path);
  EXPECT_TRUE(grad_enabled());
}

#if OCCAM_CUDA
TEST(RecomputeCall, IsCaptured) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  const Device gpu = cuda_device();
  Part part(DType::bf16, gpu, 1);
  Tensor x = full({6, 5, kDim}, 0.5, {DType::bf16, gpu});
  set_requires_grad(x, true);
  op_random::seed(3);
  auto step = [&] {
    op_random::begin_step(gpu);
    for (const Tensor& l : part.leaves) zero_grad(l);
    zero_grad(x);
    backward(pass(part, x, Way::nested), ones(x.shape(), options_of(x)));
  };
  auto gradients = [&] {
    std::vector<std::vector<double>> out{grad_of(x).to_vector<double>()};
    for (const Tensor& l : part.leaves) out.push_back(grad_of(l).to_vector<double>());
    return out;
  };
  std::vector<std::vector<std::vector<double>>> expected;
  for (int i = 0; i < 3; ++i) step(), expected.push_back(gradients());
  EXPECT_NE(expected[0], expected[1]);
  op_random::seed(3);
  void* stream = current_stream(gpu).handle;
  cuda::Graph graph;
  graph.capture(stream, step);
  for (int i = 0; i < 3; ++i) {
    graph.launch(stream);
    EXPECT_EQ(gradients(), expected[size_t(i)]) << "step " << i;
  }
}
#endif

}  // namespace
}  // namespace occam
