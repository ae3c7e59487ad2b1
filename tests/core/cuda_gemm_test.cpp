// cuBLASLt products against sums in double of the very values the GPU read.
#include <gtest/gtest.h>

#if OCCAM_CUDA
#include <array>
#include <cmath>
#include <vector>

#include "core/cuda/cublaslt.h"
#include "core/rng.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "tests/core/expect_error.h"

namespace occam::cuda {
namespace {

struct Types {
  DType ab, cd;
  bool tf32;
};
constexpr Types kTypes[] = {{DType::f32, DType::f32, false},  {DType::f32, DType::f32, true},
                            {DType::f64, DType::f64, false},  {DType::bf16, DType::bf16, false},
                            {DType::bf16, DType::f32, false}, {DType::f16, DType::f16, false}};

std::string name_of(const Types& t) {
  return std::string(occam::name_of(t.ab)) + (t.tf32 ? " (tf32)" : "") + " -> " +
         std::string(occam::name_of(t.cd));
}

/// Error of the accumulated sum relative to sum |a||b|. True f32 has no room for TF32's rounding of the
/// inputs (2^-11 each, which over k random terms leaves 2^-11 / sqrt k). Tensor cores add f32 with
/// truncation.
double accumulator_error(const Types& t) {
  if (t.ab == DType::f64) return 8 * std::ldexp(1.0, -53);
  if (t.tf32) return std::ldexp(1.0, -10) + 32 * std::ldexp(1.0, -24);
  return (t.ab == DType::f32 ? 8 : 32) * std::ldexp(1.0, -24);
}

/// A matrix on the GPU with its values in double.
struct Matrix {
  Matrix(int64_t rows, int64_t cols, int64_t pad, int64_t offset, DType dtype, Rng& rng)
      : ld(cols + pad), offset(offset), unit(int64_t(size_of(dtype))) {
    Tensor host = raw::to(rand_normal({offset + rows * ld}, 0, 1, rng), dtype);
    values = host.to_vector<double>();
    tensor = raw::to(host, cuda_device());
  }
  void* data() const { return static_cast<char*>(tensor.data_ptr()) + offset * unit; }
  double at(int64_t row, int64_t col) const { return values[size_t(offset + row * ld + col)]; }
  std::vector<double> read() const { return tensor.to_vector<double>(); }

  int64_t ld, offset, unit;
  std::vector<double> values;
  Tensor tensor;
};

class CudaGemm : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no GPU";
    stream = current_stream(cuda_device()).handle;
  }

  /// One product against the reference; `pad` widens every row, `offset` shifts every start.
  void check(GemmArgs g, const Types& types, int64_t pad, int64_t offset) {
    g.dtype_ab = types.ab, g.dtype_cd = types.cd, g.tf32 = types.tf32;
    Matrix a(g.trans_a ? g.k : g.m, g.trans_a ? g.m : g.k, pad, offset, types.ab, rng);
    Matrix b(g.trans_b ? g.n : g.k, g.trans_b ? g.k : g.n, pad, offset, types.ab, rng);
    Matrix d(g.m, g.n, pad, offset, types.cd, rng);
    const bool bias_in = g.epilogue == GemmEpilogue::bias;
    Matrix bias(1, bias_in ? g.n : g.m, 0, 0, types.cd, rng);
    g.a = a.data(), g.b = b.data(), g.d = d.data();
    g.lda = a.ld, g.ldb = b.ld, g.ldd = d.ld;
    if (g.epilogue != GemmEpilogue::none) g.bias = bias.data();
    SCOPED_TRACE(name_of(types) + ": " + describe(g));
    if (g.epilogue == GemmEpilogue::bias_gradient_a && !gemm_supported(g, stream)) {
      ++unsupported;
      return;
    }
    gemm(g, stream);
    const std::vector<double> got = d.read();
    const double u_acc = accumulator_error(types);
    const double u_out = unit_roundoff(types.cd);
    for (int64_t row = 0; row < g.m; ++row) {
      for (int64_t col = 0; col < d.ld; ++col) {
        const double actual = got[size_t(d.offset + row * d.ld + col)];
        if (col >= g.n) {
          ASSERT_EQ(actual, d.at(row, col)) << "padding was written at [" << row << "," << col << "]";
          continue;
        }
        double x = g.beta * d.at(row, col);
        double size = std::abs(x);
        for (int64_t i = 0; i < g.k; ++i) {
          const double term =
              g.alpha * (g.trans_a ? a.at(i, row) : a.at(row, i)) * (g.trans_b ? b.at(col, i) : b.at(i, col));
          x += term;
          size += std::abs(term);
        }
        // Some of the library's algorithms round the product to the output's dtype before they add to it.
        const bool adds = bias_in || g.beta != 0;
        const double rounded_product = adds ? 1.01 * u_out * std::abs(x - g.beta * d.at(row, col)) : 0;
        if (bias_in) x += bias.at(0, col), size += std::abs(bias.at(0, col));
        const double error = u_acc * size + rounded_product;
        ASSERT_NEAR(actual, x, error + 1.01 * u_out * std::abs(x)) << "at [" << row << "," << col << "]";
      }
    }
    if (g.epilogue != GemmEpilogue::bias_gradient_a) return;
    const std::vector<double> gradient = bias.read();
    for (int64_t row = 0; row < g.m; ++row) {
      double sum = 0;
      double size = 0;
      for (int64_t i = 0; i < g.k; ++i) {
        const double term = g.trans_a ? a.at(i, row) : a.at(row, i);
        sum += term;
        size += std::abs(term);
      }
      ASSERT_NEAR(gradient[size_t(row)], sum, 2 * u_acc * size + 2 * u_out * std::abs(sum))
          << "bias gradient " << row;
    }
  }

  void* stream = nullptr;
  Rng rng{7, "cuda_gemm_test"};
  int unsupported = 0;
};

TEST_F(CudaGemm, AllTranspositionsTypesAndSizes) {
  const int64_t sizes[][3] = {{1, 1, 1},    {1, 64, 33},   {64, 1, 8},     {7, 5, 3},
                              {17, 33, 65}, {96, 128, 64}, {197, 192, 300}};
  for (const Types& types : kTypes)
    for (auto [m, n, k] : sizes)
      for (int trans = 0; trans < 4; ++trans) {
        GemmArgs g;
        g.m = m, g.n = n, g.k = k, g.trans_a = trans & 1, g.trans_b = trans & 2;
        check(g, types, 0, 0);
        if (HasFatalFailure()) return;
      }
}

TEST_F(CudaGemm, RowStridesOffsetsAlphaAndBeta) {
  for (const Types& types : kTypes)
    for (int64_t pad : {0, 1, 8})
      for (int64_t offset : {0, 1, 8})
        for (int trans = 0; trans < 4; ++trans) {
          GemmArgs g;
          g.m = 40, g.n = 24, g.k = 56, g.trans_a = trans & 1, g.trans_b = trans & 2;
          g.alpha = -0.5, g.beta = trans == 0 ? 1 : 0.25;
          check(g, types, pad, offset);
          if (HasFatalFailure()) return;
        }
}

TEST_F(CudaGemm, Epilogues) {
  for (const Types& types : {Types{DType::f32, DType::f32, false}, Types{DType::bf16, DType::bf16, false}}) {
    for (auto [m, n, k] : {std::array<int64_t, 3>{128, 192, 64}, {197, 576, 192}, {33, 17, 40}}) {
      GemmArgs forward;
      forward.m = m, forward.n = n, forward.k = k, forward.trans_b = true;
      forward.epilogue = GemmEpilogue::bias;
      check(forward, types, 0, 0);
      if (HasFatalFailure()) return;
      GemmArgs g;
      g.m = n, g.n = k, g.k = m, g.trans_a = true, g.epilogue = GemmEpilogue::bias_gradient_a;
      check(g, types, 0, 0);
      if (HasFatalFailure()) return;
    }
  }
  RecordProperty("unsupported", unsupported);
  EXPECT_LE(unsupported, 4) << "aligned bf16 epilogues have algorithms on every GPU this is built for";
}

TEST_F(CudaGemm, WeightGradientAccumulatesInFloat) {
  // dw[out,in] += dy[rows,out]^T x[rows,in], bf16 in, f32 out, twice into a non-zero gradient.
  const int64_t rows = 394, out = 96, in = 64;
  Matrix dy(rows, out, 0, 0, DType::bf16, rng), x(rows, in, 0, 0, DType::bf16, rng),
      dw(out, in, 0, 0, DType::f32, rng);
  GemmArgs g;
  g.m = out, g.n = in, g.k = rows, g.trans_a = true, g.dtype_ab = DType::bf16, g.dtype_cd = DType::f32,
  g.beta = 1;
  g.a = dy.data(), g.b = x.data(), g.d = dw.data();
  gemm(g, stream);
  gemm(g, stream);
  const std::vector<double> got = dw.read();
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < in; ++i) {
      double want = dw.at(o, i), size = std::abs(want);
      for (int64_t r = 0; r < rows; ++r) {
        want += 2 * dy.at(r, o) * x.at(r, i);
        size += 2 * std::abs(dy.at(r, o) * x.at(r, i));
      }
      ASSERT_NEAR(got[size_t(o * in + i)], want, 32 * std::ldexp(1.0, -24) * size);
    }
}

TEST_F(CudaGemm, ASeparateCIsReadAndNotWritten) {
  Matrix a(16, 24, 0, 0, DType::f32, rng), b(24, 32, 0, 0, DType::f32, rng);
  Matrix c(16, 32, 4, 0, DType::f32, rng), d(16, 32, 0, 0, DType::f32, rng);
  GemmArgs g;
  g.m = 16, g.n = 32, g.k = 24, g.a = a.data(), g.b = b.data(), g.c = c.data(), g.d = d.data();
  g.ldc = c.ld, g.beta = 1;
  gemm(g, stream);
  EXPECT_EQ(c.read(), c.values);
  const std::vector<double> got = d.read();
  double want = c.at(3, 5), size = std::abs(want);
  for (int64_t i = 0; i < 24; ++i) want += a.at(3, i) * b.at(i, 5), size += std::abs(a.at(3, i) * b.at(i, 5));
  EXPECT_NEAR(got[3 * 32 + 5], want, 8 * std::ldexp(1.0, -24) * size);
}

TEST_F(CudaGemm, BatchesOverInterleavedHeads) {
  // q, k of [t,h,d] give scores [h,t,t]; scores times v gives [t,h,d]: heads are d apart, rows h*d.
  const int64_t t = 50, h = 3, d = 64;
  for (const Types& types : {Types{DType::f32, DType::f32, false}, Types{DType::bf16, DType::bf16, false}}) {
    Matrix q(t, h * d, 0, 0, types.ab, rng), k(t, h * d, 0, 0, types.ab, rng);
    Matrix scores(h * t, t, 0, 0, types.cd, rng), out(t, h * d, 0, 0, types.cd, rng);
    GemmArgs g;
    g.m = t, g.n = t, g.k = d, g.trans_b = true, g.batch = h;
    g.dtype_ab = types.ab, g.dtype_cd = types.cd;
    g.a = q.data(), g.b = k.data(), g.d = scores.data();
    g.lda = g.ldb = h * d, g.stride_a = g.stride_b = d, g.stride_d = t * t;
    gemm(g, stream);
    const std::vector<double> s = scores.read();
    const double u_acc = accumulator_error(types), u_out = unit_roundoff(types.cd);
    for (int64_t head = 0; head < h; ++head)
      for (int64_t i = 0; i < t; ++i)
        for (int64_t j = 0; j < t; ++j) {
          double want = 0, size = 0;
          for (int64_t e = 0; e < d; ++e) {
            const double term = q.at(i, head * d + e) * k.at(j, head * d + e);
            want += term, size += std::abs(term);
          }
          ASSERT_NEAR(s[size_t((head * t + i) * t + j)], want, u_acc * size + 1.01 * u_out * std::abs(want));
        }
    GemmArgs p;
    p.m = t, p.n = d, p.k = t, p.batch = h, p.dtype_ab = types.ab, p.dtype_cd = types.cd;
    p.a = scores.data(), p.b = k.data(), p.d = out.data();
    p.stride_a = t * t, p.ldb = p.ldd = h * d, p.stride_b = p.stride_d = d;
    gemm(p, stream);
    const std::vector<double> o = out.read();
    for (int64_t head = 0; head < h; ++head)
      for (int64_t i = 0; i < t; ++i)
        for (int64_t e = 0; e < d; ++e) {
          double want = 0, size = 0;
          for (int64_t j = 0; j < t; ++j) {
            const double term = s[size_t((head * t + i) * t + j)] * k.at(j, head * d + e);
            want += term, size += std::abs(term);
          }
          ASSERT_NEAR(o[size_t(i * h * d + head * d + e)], want,
                      u_acc * size + 1.01 * u_out * std::abs(want));
        }
  }
}

TEST_F(CudaGemm, EqualCallsGiveEqualBits) {
  Matrix a(256, 4096, 0, 0, DType::bf16, rng), b(4096, 64, 0, 0, DType::bf16, rng);
  Matrix first(256, 64, 0, 0, DType::f32, rng), second(256, 64, 0, 0, DType::f32, rng);
  GemmArgs g;
  g.m = 256, g.n = 64, g.k = 4096, g.dtype_ab = DType::bf16;  // tall in k: the heuristic tends to split it
  g.a = a.data(), g.b = b.data();
  for (int i = 0; i < 5; ++i) {
    g.d = first.data();
    gemm(g, stream);
    g.d = second.data();
    gemm(g, stream);
    ASSERT_EQ(first.read(), second.read());
  }
}

TEST_F(CudaGemm, EmptyProblems) {
  Matrix a(4, 4, 0, 0, DType::f32, rng), d(4, 6, 2, 0, DType::f32, rng);
  GemmArgs g;
  g.a = g.b = a.data(), g.d = d.data(), g.ldd = d.ld;
  g.m = 0, g.n = 4, g.k = 4;
  gemm(g, stream);
  EXPECT_EQ(d.read(), d.values);
  g.m = 4, g.n = 6, g.k = 0, g.beta = 1;
  gemm(g, stream);
  EXPECT_EQ(d.read(), d.values);
  g.beta = 0;
  gemm(g, stream);
  const std::vector<double> got = d.read();
  for (int64_t row = 0; row < 4; ++row)
    for (int64_t col = 0; col < d.ld; ++col)
      EXPECT_EQ(got[size_t(row * d.ld + col)], col < 6 ? 0 : d.at(row, col));
}

TEST(CudaGemmArguments, ContradictionsAreRefusedBeforeTheGpuIsAsked) {
  float x = 0;
  GemmArgs g;
  g.m = g.n = g.k = 4, g.a = g.b = &x, g.d = &x;
  g.lda = 3;
  EXPECT_OCCAM_ERROR(gemm(g, nullptr), ErrorKind::shape, "a row stride is shorter than a row");
  g.lda = 0, g.dtype_cd = DType::bf16;
  EXPECT_OCCAM_ERROR(gemm(g, nullptr), ErrorKind::shape, "gemm f32 [4,4]x[4,4] -> bf16");
  g.dtype_cd = DType::f32, g.epilogue = GemmEpilogue::bias;
  EXPECT_OCCAM_ERROR(gemm(g, nullptr), ErrorKind::shape, "bias must be given");
  g.bias = &x, g.batch = 2, g.stride_d = 16, g.epilogue = GemmEpilogue::bias_gradient_a;
  EXPECT_OCCAM_ERROR(gemm(g, nullptr), ErrorKind::shape, "not a batch");
  g.bias = nullptr, g.epilogue = GemmEpilogue::none, g.stride_d = 0;
  EXPECT_OCCAM_ERROR(gemm(g, nullptr), ErrorKind::shape, "overlap");
}

}  // namespace
}  // namespace occam::cuda
#endif
