// The product with fused epilogues against sums in double of the very values the GPU read.
#include <gtest/gtest.h>

#if OCCAM_CUDA
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/rng.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "ops/linear/kernel.h"

namespace occam::kernels {
namespace {

double gelu_of(double x) { return 0.5 * x * std::erfc(-x * M_SQRT1_2); }
double slope_of(double x) {
  return 0.5 * std::erfc(-x * M_SQRT1_2) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
}

constexpr int64_t kGuard = 64;  // elements before and behind what may be written
const double kUntouched = 12288;

/// A matrix on the GPU between two guards, and its values in double.
struct Matrix {
  Matrix(int64_t count, DType dtype) : count(count), dtype(dtype) {}
  static Matrix random(int64_t count, double deviation, Rng& rng) {
    Matrix m(count, DType::bf16);
    m.put(raw::to(rand_normal({count + 2 * kGuard}, 0, deviation, rng), DType::bf16));
    return m;
  }
  static Matrix untouched(int64_t count, DType dtype) {
    Matrix m(count, dtype);
    m.put(full({count + 2 * kGuard}, kUntouched, {.dtype = dtype}));
    return m;
  }
  template <class T = bf16>
  T* data() const {
    return tensor.data<T>() + kGuard;
  }
  double operator[](int64_t i) const { return values[size_t(i + kGuard)]; }
  /// Reads the values back; the guards must be as they were.
  void read() {
    const std::vector<double> before = values;
    values = tensor.to_vector<double>();
    for (int64_t i = 0; i < kGuard; ++i) {
      ASSERT_EQ(values[size_t(i)], before[size_t(i)]) << "written before the start";
      ASSERT_EQ(values[size_t(kGuard + count + i)], before[size_t(kGuard + count + i)])
          << "written behind the end";
    }
  }

  int64_t count;
  DType dtype;
  Tensor tensor;
  std::vector<double> values;

 private:
  void put(const Tensor& host) {
    values = host.to_vector<double>();
    tensor = raw::to(host, cuda_device());
  }
};

const char* name_of(ProductEpilogue e) {
  constexpr const char* kNames[] = {"gelu", "gelu_keep", "gelu_gradient"};
  return kNames[int(e)];
}

class FusedProductTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no GPU";
    stream = current_stream(cuda_device()).handle;
    FusedProduct p;
    p.m = p.n = p.k = 8;
    if (!fused_product_supported(p)) GTEST_SKIP() << "not a Hopper GPU";
  }

  void check(FusedProduct p) {
    SCOPED_TRACE(std::string(name_of(p.epilogue)) + " [" + std::to_string(p.m) + "," + std::to_string(p.k) +
                 "]x[" + std::to_string(p.k) + "," + std::to_string(p.n) + "], tile " +
                 fused_product_tile_name(fused_product_tile(p)));
    const bool gradient = p.epilogue == ProductEpilogue::gelu_gradient;
    Matrix a = Matrix::random(p.m * p.k, 1, rng), b = Matrix::random(p.n * p.k, 1.5 / std::sqrt(p.k), rng);
    Matrix bias = Matrix::random(p.n, 1, rng), d = Matrix::untouched(p.m * p.n, DType::bf16);
    Matrix z = gradient ? Matrix::random(p.m * p.n, 2, rng) : Matrix::untouched(p.m * p.n, DType::bf16);
    Matrix sums = Matrix::untouched(p.n, DType::f32);
    Matrix scratch = Matrix::untouched(fused_product_scratch(p), DType::f32);
    p.a = a.data(), p.b = b.data(), p.d = d.data();
    if (gradient)
      p.bias_gradient = sums.data<float>(), p.scratch = scratch.data<float>();
    else
      p.bias = bias.data();
    if (gradient || p.epilogue == ProductEpilogue::gelu_keep) p.z = z.data();
    ASSERT_TRUE(fused_product_supported(p));
    fused_product(p, stream);
    d.read(), z.read(), sums.read(), scratch.read();
    if (HasFatalFailure()) return;

    // Tensor cores add f32 with truncation; everything else is one rounding to bf16 and gelu_fast's 2^-16.
    const double u_acc = 32 * std::ldexp(1.0, -24), u_out = 1.01 * unit_roundoff(DType::bf16);
    const double fast = std::ldexp(1.0, -15), tiny = std::ldexp(1.0, -30);
    std::vector<double> column(size_t(p.n), 0), column_size(size_t(p.n), 0);
    for (int64_t r = 0; r < p.m; ++r)
      for (int64_t c = 0; c < p.n; ++c) {
        double x = gradient ? 0 : bias[c], size = std::abs(x);
        for (int64_t i = 0; i < p.k; ++i) {
          const double term = a[r * p.k + i] * (gradient ? b[i * p.n + c] : b[c * p.k + i]);
          x += term, size += std::abs(term);
        }
        const int64_t at = r * p.n + c;
        double want = x, error = u_acc * size;
        if (p.epilogue == ProductEpilogue::gelu_keep) {
          ASSERT_NEAR(z[at], x, error + u_out * std::abs(x)) << "z [" << r << "," << c << "]";
          x = z[at], error = 0;  // d follows from z as it is stored
        }
        if (gradient) {
          want = x * slope_of(z[at]);
          error = error * std::abs(slope_of(z[at])) + fast * std::abs(x);
          column[size_t(c)] += d[at], column_size[size_t(c)] += std::abs(d[at]);
        } else {
          want = gelu_of(x);
          error = 1.13 * error + fast * std::abs(want) + tiny;  // |gelu'| <= 1.13
        }
        ASSERT_NEAR(d[at], want, error + u_out * std::abs(want)) << "d [" << r << "," << c << "]";
      }
    if (!gradient) return;
    for (int64_t c = 0; c < p.n; ++c)
      ASSERT_NEAR(sums[c], column[size_t(c)], u_acc * column_size[size_t(c)]) << "bias gradient " << c;
  }

  void* stream = nullptr;
  Rng rng{11, "fused_product_test"};
};

TEST_F(FusedProductTest, EveryTileAndEpilogueAtRaggedSizes) {
  const int64_t sizes[][3] = {{1, 8, 8},      {7, 72, 24},     {63, 64, 64},    {65, 136, 72},
                              {129, 200, 40}, {197, 264, 192}, {300, 392, 136}, {257, 24, 520}};
  for (int tile = -1; tile < fused_product_tiles(); ++tile)
    for (auto [m, n, k] : sizes)
      for (int e = 0; e < 3; ++e) {
        FusedProduct p;
        p.m = m, p.n = n, p.k = k, p.tile = tile;
        p.epilogue = ProductEpilogue(e);
        check(p);
        if (HasFatalFailure()) return;
      }
}

TEST_F(FusedProductTest, ManyTilesForABlockGiveEqualBitsTwice) {
  const int64_t m = 20000, n = 384, k = 96;  // more tiles than the ring and the warpgroups can hold
  Matrix a = Matrix::random(m * k, 1, rng), b = Matrix::random(n * k, 0.15, rng);
  Matrix z = Matrix::random(m * n, 2, rng);
  for (int tile = 0; tile < fused_product_tiles(); ++tile) {
    SCOPED_TRACE(fused_product_tile_name(tile));
    FusedProduct p;
    p.m = m, p.n = n, p.k = k, p.tile = tile;
    p.epilogue = ProductEpilogue::gelu_gradient;
    p.a = a.data(), p.b = b.data(), p.z = z.data();
    Matrix scratch = Matrix::untouched(fused_product_scratch(p), DType::f32);
    p.scratch = scratch.data<float>();
    std::array<Matrix, 2> d{Matrix::untouched(m * n, DType::bf16), Matrix::untouched(m * n, DType::bf16)};
    std::array<Matrix, 2> sums{Matrix::untouched(n, DType::f32), Matrix::untouched(n, DType::f32)};
    for (int i = 0; i < 2; ++i) {
      p.d = d[size_t(i)].data(), p.bias_gradient = sums[size_t(i)].data<float>();
      fused_product(p, stream);
      d[size_t(i)].read(), sums[size_t(i)].read();
    }
    ASSERT_EQ(d[0].values, d[1].values);
    ASSERT_EQ(sums[0].values, sums[1].values);
    for (int64_t c = 0; c < n; ++c) {
      double sum = 0, size = 0;
      for (int64_t r = 0; r < m; ++r) sum += d[0][r * n + c], size += std::abs(d[0][r * n + c]);
      ASSERT_NEAR(sums[0][c], sum, 32 * std::ldexp(1.0, -24) * size);
    }
  }
}

TEST_F(FusedProductTest, WhatItCannotDoIsRefused) {
  FusedProduct p;
  p.m = 4, p.n = 16, p.k = 16;
  EXPECT_TRUE(fused_product_supported(p));
  p.n = 12;
  EXPECT_FALSE(fused_product_supported(p)) << "rows of d are not whole 16 bytes";
  p.n = 16, p.k = 4;
  EXPECT_FALSE(fused_product_supported(p)) << "rows of a are not whole 16 bytes";
  p.k = 16, p.m = 0;
  EXPECT_FALSE(fused_product_supported(p)) << "empty";
  p.m = 4, p.a = reinterpret_cast<const bf16*>(uintptr_t(8));
  EXPECT_FALSE(fused_product_supported(p)) << "address";
}

}  // namespace
}  // namespace occam::kernels
#endif
