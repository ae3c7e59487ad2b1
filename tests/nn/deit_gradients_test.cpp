// Every gradient of DeiT-Tiny with one mixer in all blocks against PyTorch in double
// (tests/tools/deit_gradients.py).
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/io/safetensors.h"
#include "nn/vit/model.h"
#include "ops/elementwise/op.h"
#include "ops/reduce/op.h"
#include "tests/nn/rule.h"

namespace occam {
namespace {

/// Relative error of a gradient in f32 beside its RMS. Each of 12 blocks rounds, forward and again backward,
/// some 20 results, and sums products of up to 768 terms in 5 of them; a sum of n terms in random order errs
/// by about u sqrt(n/3). Independent errors add up by their squares.
const double kModel = std::ldexp(1.0, -24) * std::sqrt(2.0 * 12 * (20 + 5 * 768 / 3.0));

class DeitGradients : public testing::TestWithParam<std::string> {
 protected:
  void check(Device device) {
    const std::string name = GetParam();
    const Safetensors golden(OCCAM_SOURCE_DIR "/tests/data/golden/deit_gradients.safetensors");
    VisionTransformer model(vit_shape("deit_tiny_patch16_224"));
    if (name != "attention")
      for (int64_t i = 0; i < 12; ++i) model.replace_mixer(i, {name, {}});
    rule::fill(model, name);
    model.to(device);
    model.eval();
    const Tensor logits = model(raw::to(rule::images(name, model.shape().image()), device));
    const Tensor cotangent = raw::to(rule::tensor(name + "/cotangent", {1, 1000}, 0, 1), device);
    backward(sum(logits * cotangent), {});
    expect_close(name + ".logits", logits.to_vector<double>(),
                 golden.get(name + ".logits").to_vector<double>());
    size_t compared = 0;
    for (const auto& [path, p] : model.named_parameters()) {
      SCOPED_TRACE(path);
      const std::vector<double> want = golden.get(name + "." + path).to_vector<double>();
      const Tensor g = p->grad();
      ASSERT_TRUE(g) << "no gradient";
      const std::vector<double> all = g.to_vector<double>();
      double squares = 0;
      for (double v : all) squares += v * v;
      const double norm = want[0], rms = norm / std::sqrt(double(all.size()));
      EXPECT_NEAR(std::sqrt(squares), norm, 5 * kModel * norm);
      const size_t stride = std::max<size_t>(1, all.size() / 16);
      for (size_t i = 1; i < want.size(); ++i)
        EXPECT_NEAR(all[(i - 1) * stride], want[i], 5 * kModel * std::max(rms, std::abs(want[i])))
            << "value " << i - 1;
      ++compared;
    }
    size_t kept = 0;
    for (const SafetensorsEntry& e : golden.entries()) kept += e.name.starts_with(name + ".");
    EXPECT_EQ(compared + 1, kept);
  }

 private:
  static void expect_close(const std::string& what, const std::vector<double>& got,
                           const std::vector<double>& want) {
    ASSERT_EQ(got.size(), want.size());
    double squares = 0;
    for (double v : want) squares += v * v;
    const double rms = std::sqrt(squares / double(want.size()));
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(got[i], want[i], 5 * kModel * rms) << what << " " << i;
  }
};

TEST_P(DeitGradients, Cpu) { check(kCPU); }

TEST_P(DeitGradients, Cuda) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  check(cuda_device());
}

INSTANTIATE_TEST_SUITE_P(Mixers, DeitGradients, testing::Values("attention", "bilstm", "mamba2"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace occam
