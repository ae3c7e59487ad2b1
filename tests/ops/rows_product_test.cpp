// The product of few rows in every tile and split against sums in double of the very values the GPU read.
#include <gtest/gtest.h>

#if OCCAM_CUDA
#include <cmath>
#include <vector>

#include "core/grad_mode.h"
#include "core/rng.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "ops/fused_linear/op.h"
#include "ops/linear/kernel.h"

namespace occam::kernels {
namespace {

constexpr double kUntouched = 12288;
constexpr int64_t kGuard = 64;  // elements before and behind y

struct Shape4 {
  int64_t m, n, k;
  bool bias, norm, residual, gelu;
};

class RowsProductTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no GPU";
    if (!rows_product_pays(1, 1)) GTEST_SKIP() << "not for this GPU";
  }
  Tensor random(int64_t count, double deviation, double mean = 0) {
    return raw::to(raw::to(rand_normal({count}, mean, deviation, rng), DType::bf16), cuda_device());
  }
  Rng rng{0, "rows product"};
};

std::vector<double> expected(const Shape4& s, const std::vector<std::vector<double>>& in) {
  std::vector<double> y(size_t(s.m * s.n)), row(size_t(s.k), 0.0);
  for (int64_t r = 0; r < s.m; ++r) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < s.k; ++i) mean += in[0][size_t(r * s.k + i)] / double(s.k);
    for (int64_t i = 0; i < s.k; ++i)
      variance += std::pow(in[0][size_t(r * s.k + i)] - mean, 2) / double(s.k);
    for (int64_t i = 0; i < s.k; ++i) {
      const double x = in[0][size_t(r * s.k + i)];
      row[size_t(i)] =
          s.norm ? (x - mean) / std::sqrt(variance + 1e-6) * in[3][size_t(i)] + in[4][size_t(i)] : x;
    }
    for (int64_t o = 0; o < s.n; ++o) {
      double sum = s.bias ? in[2][size_t(o)] : 0;
      for (int64_t i = 0; i < s.k; ++i) sum += row[size_t(i)] * in[1][size_t(o * s.k + i)];
      if (s.gelu) sum = 0.5 * sum * std::erfc(-sum * M_SQRT1_2);
      y[size_t(r * s.n + o)] = sum + (s.residual ? in[5][size_t(r * s.n + o)] : 0);
    }
  }
  return y;
}

TEST_F(RowsProductTest, EveryTileAndSplit) {
  for (const Shape4& s : {Shape4{1, 8, 8, false, true, false, false},
                          {17, 72, 136, true, false, true, true},
                          {65, 200, 384, true, true, true, true},
                          {33, 136, 1032, true, false, true, false}}) {
    std::vector<Tensor> in{random(s.m * s.k, 1, 1), random(s.n * s.k, 1 / std::sqrt(double(s.k))),
                           random(s.n, 1),          random(s.k, 0.3, 1),
                           random(s.k, 0.5),        random(s.m * s.n, 1)};
    std::vector<std::vector<double>> values;
    for (const Tensor& t : in) values.push_back(t.to_vector<double>());
    const std::vector<double> want = expected(s, values);
    for (int tile = 0; tile < rows_product_tiles(); ++tile)
      for (int split : {1, 2, 3, 4, 8}) {
        if (split > (s.k + 63) / 64 || (s.norm && split > 1)) continue;
        SCOPED_TRACE(std::string(rows_product_tile_name(tile)) + " split " + std::to_string(split));
        const Tensor y = full({s.m * s.n + 2 * kGuard}, kUntouched, {DType::bf16, cuda_device()});
        RowsProduct p{.m = s.m, .n = s.n, .k = s.k, .x = in[0].data<bf16>(), .w = in[1].data<bf16>()};
        if (s.bias) p.bias = in[2].data<bf16>();
        if (s.norm) p.norm_weight = in[3].data<bf16>(), p.norm_bias = in[4].data<bf16>();
        if (s.residual) p.residual = in[5].data<bf16>();
        p.y = y.data<bf16>() + kGuard, p.eps = 1e-6f, p.gelu = s.gelu, p.tile = tile, p.split = split;
        ASSERT_TRUE(rows_product_supported(p));
        rows_product(p, current_stream(cuda_device()).handle);
        const std::vector<double> got = y.to_vector<double>();
        for (int64_t i = 0; i < kGuard; ++i) {
          ASSERT_EQ(got[size_t(i)], kUntouched);
          ASSERT_EQ(got[size_t(kGuard + s.m * s.n + i)], kUntouched);
        }
        // One rounding of y; normalised rows are rounded too, k errors of 2^-9 in a sum of size 1.
        for (size_t i = 0; i < want.size(); ++i)
          ASSERT_NEAR(got[i + kGuard], want[i], 0x1p-8 * (std::abs(want[i]) + (s.norm ? 3 : 0.25))) << i;
      }
  }
}

// Kernels of a chain read their weights before those ahead have ended: not these, which they make.
TEST_F(RowsProductTest, WeightsMadeByTheKernelAhead) {
  NoGrad no_grad;
  const Tensor ones = full({256, 512}, 1, {DType::bf16, cuda_device()}),
               x = full({64, 256}, 1, {DType::bf16, cuda_device()});
  for (int i = 0; i < 20; ++i) {
    const Tensor b = full({256, 512}, 0x1p-9 * (i + 1), {DType::bf16, cuda_device()});
    linear(ones, ones);                // opens a chain
    const Tensor w = linear(ones, b);  // i + 1 everywhere
    for (float v : linear(x, w).to_vector<float>()) ASSERT_EQ(v, float(256 * (i + 1)));
  }
}

}  // namespace
}  // namespace occam::kernels
#endif
