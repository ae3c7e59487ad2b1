// Logits, parameter counts and resampled position embeddings against timm (tests/tools/timm_logits.py).
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/grad_mode.h"
#include "core/io/safetensors.h"
#include "nn/vit/model.h"
#include "nn/vit/pos_embed.h"
#include "tests/nn/rule.h"

namespace occam {
namespace {

const Safetensors& golden() {
  static const Safetensors file(OCCAM_SOURCE_DIR "/tests/data/golden/timm_vit.safetensors");
  return file;
}

struct Difference {
  double rms = 0;      // of the expected logits
  double error = 0;    // RMS of the difference, over `rms`
  double largest = 0;  // largest difference, over `rms`
};

Difference difference(const Tensor& got, const Tensor& expected) {
  EXPECT_EQ(got.shape(), expected.shape());
  const std::vector<double> g = got.to_vector<double>(), e = expected.to_vector<double>();
  double squares = 0, errors = 0, largest = 0;
  for (size_t i = 0; i < e.size(); ++i) {
    squares += e[i] * e[i];
    errors += (g[i] - e[i]) * (g[i] - e[i]);
    largest = std::max(largest, std::abs(g[i] - e[i]));
  }
  const double rms = std::sqrt(squares / double(e.size()));
  return {rms, std::sqrt(errors / double(e.size())) / rms, largest / rms};
}

/// Roundings to bf16 behind a logit act as independent relative errors of u/sqrt(3) on the residual stream:
/// the patch product and the sum with positions, in each block two norms, qkv, attention's weights and
/// output, proj, two MLP products and two sums (10) and as many weights and inputs rounded (5 products),
/// final norm, head. The stream only averages them, and random weights do not amplify, so their squares add
/// up.
double bf16_error(const VitShape& s) {
  const double roundings = 4 + 15.0 * double(s.depth) + 4;
  return unit_roundoff(DType::bf16) / std::sqrt(3.0) * std::sqrt(roundings);
}

class Timm : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const bool is_tiny = GetParam().find("tiny") != std::string::npos;
    if (!is_tiny && std::getenv("OCCAM_ALL_MODELS") == nullptr)
      GTEST_SKIP() << "set OCCAM_ALL_MODELS=1 to run the Small and Base models";
    model_ = make_model({.name = GetParam()});
    rule::fill(*model_, GetParam());
    model_->eval();
    expected_ = golden().get("logits." + GetParam());
  }
  Difference run(Device device, DType dtype) {
    NoGrad no_grad;
    model_->to(device);
    model_->set_compute_dtype(dtype);
    Tensor images = rule::images(GetParam(), model_->shape().image().with(0, expected_.size(0)));
    const Difference d = difference((*model_)(raw::to(images, device)), expected_);
    RecordProperty("rms_error", fmt::format("{:.3g}", d.error));
    RecordProperty("largest_error", fmt::format("{:.3g}", d.largest));
    RecordProperty("bf16_model", fmt::format("{:.3g}", bf16_error(model_->shape())));
    return d;
  }
  std::unique_ptr<VisionTransformer> model_;
  Tensor expected_;
};

TEST_P(Timm, Float32) {
  EXPECT_EQ(model_->parameter_count(), int64_t(golden().get("parameters." + GetParam()).item()));
  EXPECT_LT(run(kCPU, DType::f32).largest, 1e-4);
}

TEST_P(Timm, Bfloat16) {
  const Difference d = run(kCPU, DType::bf16);
  const double model = bf16_error(model_->shape());
  EXPECT_LT(d.error, model);
  EXPECT_LT(d.largest, 5 * model);  // five standard deviations: 2000 logits
  EXPECT_GT(d.error, model / 20) << "was this computed in bf16 at all?";
}

TEST_P(Timm, CudaFloat32) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  EXPECT_LT(run(cuda_device(), DType::f32).largest, 1e-4);
}

TEST_P(Timm, CudaBfloat16) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  const Difference d = run(cuda_device(), DType::bf16);
  const double model = bf16_error(model_->shape());
  EXPECT_LT(d.error, model);
  EXPECT_LT(d.largest, 5 * model);
  EXPECT_GT(d.error, model / 20) << "was this computed in bf16 at all?";
}

INSTANTIATE_TEST_SUITE_P(Logits, Timm, testing::ValuesIn(vit_names()),
                         [](const auto& info) { return info.param; });

TEST(TimmNames, EveryGoldenModelIsKnown) {
  size_t models = 0;
  for (const SafetensorsEntry& e : golden().entries())
    if (e.name.starts_with("logits.")) {
      ++models;
      EXPECT_NE(std::find(vit_names().begin(), vit_names().end(), e.name.substr(7)), vit_names().end())
          << e.name;
    }
  EXPECT_EQ(models, vit_names().size());
}

TEST(TimmPosEmbed, ResampledLikeTimm) {
  int cases = 0;
  for (const SafetensorsEntry& e : golden().entries()) {
    int64_t prefix = 0, from = 0, to = 0;
    if (std::sscanf(e.name.c_str(), "pos_embed.%ld.%ld.%ld", &prefix, &from, &to) != 3) continue;
    ++cases;
    Tensor embed = rule::tensor(e.name, {1, prefix + from * from, 4}, 0, 1);
    Tensor got = resample_pos_embed(embed, prefix, to);
    ASSERT_EQ(got.shape(), e.tensor.shape());
    const std::vector<float> g = got.to_vector<float>(), w = e.tensor.to_vector<float>();
    // timm sums up to 28^2 products of f32 weights.
    for (size_t i = 0; i < w.size(); ++i) ASSERT_NEAR(g[i], w[i], 2e-6) << e.name << " element " << i;
  }
  EXPECT_EQ(cases, 4);
  Tensor same = rule::tensor("same", {1, 1 + 4 * 4, 4}, 0, 1);
  EXPECT_TRUE(resample_pos_embed(same, 1, 4).is_same(same));
}

}  // namespace
}  // namespace occam
