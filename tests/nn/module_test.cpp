#include "nn/module.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/grad_mode.h"
#include "nn/layers/layer_norm.h"
#include "nn/layers/mlp.h"
#include "nn/plan.h"
#include "nn/state.h"
#include "ops/reduce/op.h"
#include "tests/core/expect_error.h"
#include "tests/nn/rule.h"

namespace occam {
namespace {

using Names = std::vector<std::string>;

Names names_of(const Module& module) {
  Names names;
  for (const auto& [name, p] : module.named_parameters()) names.push_back(name);
  return names;
}

TEST(Module, NamesPathsAndCounts) {
  Mlp mlp(4, 8);
  EXPECT_EQ(names_of(mlp), (Names{"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}));
  EXPECT_EQ(mlp.parameter_count(), 8 * 4 + 8 + 4 * 8 + 4);
  EXPECT_EQ(mlp.find("fc2")->path(), "fc2");
  EXPECT_EQ(mlp.find("fc3"), nullptr);
  EXPECT_EQ(mlp.find(""), &mlp);
}

TEST(Module, InitialValuesDependOnSeedAndNameOnly) {
  Mlp a(4, 8), b(4, 8);
  initialize(a, 7);
  initialize(*b.find("fc2"), 7);  // another name: other values
  initialize(b, 7);
  const auto pa = a.named_parameters(), pb = b.named_parameters();
  EXPECT_EQ(pa[0].second->master().to_vector<float>(), pb[0].second->master().to_vector<float>());
  EXPECT_NE(pa[2].second->master().to_vector<float>(), pb[2].second->master().to_vector<float>());
  initialize(b, 7, true);
  EXPECT_EQ(pa[2].second->master().to_vector<float>(), pb[2].second->master().to_vector<float>());
  initialize(b, 8, true);
  EXPECT_NE(pa[0].second->master().to_vector<float>(), pb[0].second->master().to_vector<float>());
}

TEST(Module, ParameterWithoutValuesSaysSo) {
  Mlp mlp(4, 8);
  EXPECT_OCCAM_ERROR(mlp(ones({1, 4})), ErrorKind::internal, "no values yet");
}

TEST(Parameter, ShadowFollowsTheMaster) {
  Parameter p({3}, nullptr);
  p.set_values(from_vector<float>({1.f, 2.f, 3.f}));
  p.set_compute_dtype(DType::bf16);
  const Tensor first = p.value();
  EXPECT_EQ(first.dtype(), DType::bf16);
  {
    NoGrad no_grad;
    Tensor master = p.master();
    master.fill_(1.0009765625);  // between two bf16 numbers
  }
  const Tensor second = p.value();
  EXPECT_TRUE(second.is_same(first)) << "the shadow keeps its memory";
  EXPECT_EQ(second.to_vector<float>(), (std::vector<float>{1, 1, 1}));
  p.set_compute_dtype(DType::f32);
  EXPECT_TRUE(p.value().is_same(p.master()));
}

TEST(Parameter, GradientOfTheShadowArrivesAtTheMaster) {
  Mlp mlp(4, 8);
  initialize(mlp, 1);
  mlp.set_compute_dtype(DType::bf16);
  backward(sum(mlp(raw::to(ones({2, 4}), DType::bf16))));
  for (const auto& [name, p] : mlp.named_parameters()) {
    ASSERT_TRUE(p->grad().defined()) << name;
    EXPECT_EQ(p->grad().dtype(), DType::f32) << name;
    EXPECT_EQ(p->grad().shape(), p->shape()) << name;
  }
  EXPECT_TRUE(parameters_without_grad(mlp).empty());
  mlp.zero_grad();
  EXPECT_EQ(parameters_without_grad(mlp).size(), 4u);
}

TEST(Module, FreezeByGlob) {
  Mlp mlp(4, 8);
  initialize(mlp, 1);
  mlp.set_compute_dtype(DType::bf16);
  mlp(raw::to(ones({1, 4}), DType::bf16));  // shadows exist before the change
  EXPECT_EQ(mlp.freeze("fc1.*"), 2);
  backward(sum(mlp(raw::to(ones({1, 4}), DType::bf16))));
  EXPECT_FALSE(mlp.named_parameters()[0].second->grad().defined());
  EXPECT_TRUE(mlp.named_parameters()[2].second->grad().defined());
  EXPECT_TRUE(parameters_without_grad(mlp).empty()) << "frozen ones are not missing";
  EXPECT_EQ(mlp.unfreeze("*.bias"), 2);
  EXPECT_EQ(parameters_without_grad(mlp), Names{"fc1.bias"});
  EXPECT_OCCAM_ERROR(mlp.freeze("fc9.*"), ErrorKind::usage, "matches \"fc9.*\"");
  mlp.eval();
  EXPECT_TRUE(mlp.named_parameters()[2].second->trainable()) << "the mode does not touch gradients";
}

TEST(Module, Glob) {
  EXPECT_TRUE(glob_match("*", ""));
  EXPECT_TRUE(glob_match("blocks.*.attn.*", "blocks.10.attn.qkv.weight"));
  EXPECT_TRUE(glob_match("*bias", "a.bias.bias"));
  EXPECT_TRUE(glob_match("fc?", "fc1"));
  EXPECT_FALSE(glob_match("fc?", "fc"));
  EXPECT_FALSE(glob_match("blocks.1.*", "blocks.10.attn"));
  EXPECT_FALSE(glob_match("", "a"));
}

TEST(Module, HooksSeePathInputAndOutput) {
  Mlp mlp(4, 8);
  initialize(mlp, 1);
  Names seen;
  {
    auto handle = mlp.find("fc2")->add_hook([&](const std::string& path, const Tensor& x, const Tensor& y) {
      seen.push_back(path + x.shape().str() + y.shape().str());
    });
    mlp(ones({1, 4}));
  }
  mlp(ones({1, 4}));
  EXPECT_EQ(seen, Names{"fc2[1,8][1,4]"});
}

TEST(Module, HandleMayOutliveItsModule) {
  Module::HookHandle handle;
  {
    Mlp mlp(4, 8);
    handle = mlp.add_hook([](const std::string&, const Tensor&, const Tensor&) {});
  }
  handle.reset();
}

TEST(Module, ErrorsNameTheModule) {
  Mlp mlp(4, 8);
  initialize(mlp, 1);
  {
    auto handle = mlp.find("fc1")->add_hook([](const std::string&, const Tensor&, const Tensor&) {});
    EXPECT_OCCAM_ERROR(mlp(ones({1, 5})), ErrorKind::shape, "where     fc1");
  }
  EXPECT_OCCAM_ERROR(mlp(ones({1, 5})), ErrorKind::shape, "axis `i` is 5 in x [1,5] but 4 in w1 [8,4]");
  EXPECT_OCCAM_ERROR(plan_of(mlp, {1, 5}), ErrorKind::shape, "fc1: input [1,5] for a layer of 4 inputs");
}

TEST(Layers, NormUsesEpsilonOfVisionTransformers) {
  LayerNorm norm(2);
  initialize(norm, 1);
  // Mean 0, variance 1e-6: halved in square by an epsilon of 1e-6.
  const float y = norm(from_vector<float>({1e-3f, -1e-3f}, {1, 2})).to_vector<float>()[0];
  EXPECT_NEAR(y, std::sqrt(0.5), 1e-4);
}

TEST(State, RoundTrip) {
  Mlp a(4, 8), b(4, 8);
  initialize(a, 1);
  EXPECT_TRUE(load_state_dict(b, state_dict(a)).complete());
  EXPECT_EQ(a(ones({1, 4})).to_vector<float>(), b(ones({1, 4})).to_vector<float>());
}

TEST(State, OneErrorForEverythingThatDoesNotFit) {
  Mlp mlp(4, 8);
  initialize(mlp, 1);
  const auto before = state_dict(mlp)[2].second.to_vector<float>();
  NamedTensors dict{{"fc1.weight", ones({8, 5})},
                    {"fc1.bias", ones({8}, {DType::i64})},
                    {"fc2.weight", ones({4, 8})},
                    {"fc3.weight", ones({1})}};
  try {
    load_state_dict(mlp, dict, {.source = "x.safetensors"});
    FAIL() << "no Error thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::input);
    for (const char* part : {"x.safetensors", "missing (1)\n    fc2.bias", "unexpected (1)\n    fc3.weight",
                             "fc1.weight: f32 [8,5] there, [8,4] in the model", "fc1.bias: i64 [8] there"})
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos)
          << e.what() << "\n  expected in it: " << part;
  }
  EXPECT_EQ(state_dict(mlp)[2].second.to_vector<float>(), before) << "a refused dictionary changes nothing";

  LoadReport report = load_state_dict(mlp, dict, {.strict = false});
  EXPECT_EQ(report.missing, Names{"fc2.bias"});
  EXPECT_EQ(report.unexpected, Names{"fc3.weight"});
  EXPECT_EQ(report.mis_shaped.size(), 2u);
  EXPECT_EQ(state_dict(mlp)[2].second.to_vector<float>(), std::vector<float>(32, 1));
}

// Gradients that are made in f64 for masters in f32: neither written into too little memory nor left in f64.
TEST(Module, ComputesInDoubleWithMastersInFloat) {
  auto gradients = [](DType dtype) {
    Mlp mlp(24, 40);
    rule::fill(mlp, "double");
    mlp.set_compute_dtype(dtype);
    const Tensor x = raw::to(rule::tensor("double/x", {3, 7, 24}, 0, 1), dtype);
    backward(sum(mlp(x)));
    std::vector<std::vector<double>> all;
    mlp.each_parameter([&](Parameter& p) {
      EXPECT_EQ(p.grad().dtype(), DType::f32);
      all.push_back(p.grad().to_vector<double>());
    });
    return all;
  };
  const auto wide = gradients(DType::f64), narrow = gradients(DType::f32);
  ASSERT_EQ(wide.size(), 4u);
  for (size_t i = 0; i < wide.size(); ++i) {
    double size = 0;
    for (double v : wide[i]) size = std::max(size, std::abs(v));
    // Sums of at most 40 products and then of 21 rows.
    for (size_t j = 0; j < wide[i].size(); ++j)
      ASSERT_NEAR(narrow[i][j], wide[i][j], 61 * std::ldexp(1.0, -24) * size) << "parameter " << i;
  }
}

}  // namespace
}  // namespace occam
