// wkv on sequences that a block has no room for, against the same on a CPU in f64.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/device.h"
#include "core/rng.h"
#include "ops/wkv/op.h"

namespace occam {
namespace {

/// y and the gradients of k, v, w, u.
std::vector<std::vector<double>> run(const std::vector<Tensor>& values, const Tensor& gy, DType dtype,
                                     Device device) {
  auto there = [&](const Tensor& t) { return raw::to(raw::to(t, dtype), device); };
  std::vector<Tensor> in;
  for (const Tensor& t : values) in.push_back(there(t)), set_requires_grad(in.back(), true);
  const Tensor y = wkv(in[0], in[1], in[2], in[3]);
  backward(y, there(gy));
  std::vector<std::vector<double>> all{detach(y).to_vector<double>()};
  for (const Tensor& t : in) all.push_back(grad_of(t).to_vector<double>());
  return all;
}

/// `decay` is that of a token. Channels that are whole packs and ones that are not.
void long_sequences_agree(Device device) {
  for (const auto& [t, c, decay] :
       {std::tuple{600, 8, 0.001}, std::tuple{600, 7, 1.0}, std::tuple{1300, 8, 0.001},
        std::tuple{2600, 8, 0.001}, std::tuple{2600, 5, 0.5}, std::tuple{9000, 4, 0.001},
        std::tuple{9000, 3, 0.001}}) {
    SCOPED_TRACE(std::to_string(t) + " tokens, decay " + std::to_string(decay));
    Rng rng(1, "wkv");
    auto normal = [&](const Shape& s) { return rand_normal(s, 0, 1, rng); };
    const std::vector<Tensor> in{normal({2, t, c}), normal({2, t, c}), rand_uniform({c}, 0, decay * t, rng),
                                 normal({c})};
    const Tensor gy = normal({2, t, c});
    const auto want = run(in, gy, DType::f64, kCPU), got = run(in, gy, DType::f32, device);
    const char* names[] = {"y", "k", "v", "w", "u"};
    for (size_t i = 0; i < want.size(); ++i) {
      double difference = 0, size = 0;
      for (size_t j = 0; j < want[i].size(); ++j) {
        difference += (got[i][j] - want[i][j]) * (got[i][j] - want[i][j]);
        size += want[i][j] * want[i][j];
      }
      // The decay of a token is rounded once and taken up to t times; sums take a rounding for each of sqrt t
      // random steps, times exponents of up to 10. Parameters' gradients are sums of t terms of either sign,
      // of which sqrt t remain.
      const double roundings = (double(t) + 10 * std::sqrt(double(t))) * 0x1p-24;
      EXPECT_LT(std::sqrt(difference / size), i < 3 ? roundings : roundings * std::sqrt(double(t)))
          << names[i];
    }
  }
}

TEST(WkvLong, CpuAgrees) { long_sequences_agree(kCPU); }
TEST(WkvLong, GpuAgrees) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  long_sequences_agree(cuda_device());
}

}  // namespace
}  // namespace occam
