// Products on the CPU, cut among threads by rows and by terms, against sums in double.
#include "ops/blas.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <vector>

#include "core/rng.h"
#include "core/vmath.h"

namespace occam {
namespace {

struct Case {
  int64_t m, n, k;
  bool trans_a, trans_b;
  double alpha, beta;
  bool bias, row_sums, gelu = false, slope = false;
};

class CpuProduct : public testing::TestWithParam<Case> {};

TEST_P(CpuProduct, IsTheSumOverKWhateverTheThreads) {
  const Case c = GetParam();
  Rng rng(0, "blas");
  const Tensor a = rand_normal({c.m * c.k}, 0, 1, rng), b = rand_normal({c.n * c.k}, 0, 1, rng);
  const Tensor bias = rand_normal({c.n}, 0, 1, rng), before = rand_normal({c.m * c.n}, 0, 1, rng);
  const Tensor d = empty({c.m * c.n}, {DType::f32, kCPU}), sums = empty({c.m}, {DType::f32, kCPU});
  const float *pa = a.data<float>(), *pb = b.data<float>();
  std::vector<double> want(size_t(c.m * c.n)), size(want.size()), want_sums(size_t(c.m), 0.0);
  for (int64_t i = 0; i < c.m; ++i)
    for (int64_t q = 0; q < c.k; ++q) {
      const double x = c.trans_a ? pa[q * c.m + i] : pa[i * c.k + q];
      want_sums[size_t(i)] += x;
      for (int64_t j = 0; j < c.n; ++j) {
        const double term = c.alpha * x * (c.trans_b ? pb[j * c.k + q] : pb[q * c.n + j]);
        want[size_t(i * c.n + j)] += term, size[size_t(i * c.n + j)] += std::abs(term);
      }
    }
  Product p{.trans_a = c.trans_a, .trans_b = c.trans_b, .m = c.m, .n = c.n, .k = c.k};
  p.alpha = c.alpha, p.beta = c.beta;
  if (c.bias) p.bias = bias.data_ptr();
  if (c.row_sums) p.row_sums = sums.data_ptr();
  const Tensor y = empty_like(d), at = rand_normal({c.m * c.n}, 0, 1, rng);
  const bool fuses = wide_vectors();
  if (c.gelu && fuses) p.gelu = y.data_ptr();
  if (c.slope && fuses) p.slope_at = at.data_ptr();
  ASSERT_TRUE(product_fuses(p, a.data_ptr(), b.data_ptr(), d.data_ptr()));
  const int threads = omp_get_max_threads();
  std::vector<float> of_one_thread;
  for (int count : {1, 2, 3, 16}) {
    omp_set_num_threads(count);
    for (int64_t i = 0; i < d.numel(); ++i)
      d.data<float>()[i] = c.beta == 0 ? NAN : before.data<float>()[i];  // what is left out must show
    matrix_product(p, a.data_ptr(), b.data_ptr(), d.data_ptr());
    for (int64_t i = 0; i < d.numel(); ++i) {
      double expected = want[size_t(i)] + (c.bias ? double(bias.data<float>()[i % c.n]) : 0.0);
      if (c.beta != 0) expected += c.beta * before.data<float>()[i];
      double allowed = double(c.k + 4) * 0x1p-24 * (size[size_t(i)] + 8);
      if (p.slope_at != nullptr) {
        const double slope = gelu_slope(double(at.data<float>()[i]));
        allowed = allowed * std::abs(slope) + 4e-7 * (1 + std::abs(slope)) * std::abs(expected);
        expected *= slope;
      }
      if (p.gelu != nullptr) {
        const double x = d.data<float>()[i];
        ASSERT_NEAR(y.data<float>()[i], gelu_of(x), 4e-7 * (std::abs(x) + 1)) << "element " << i;
      }
      ASSERT_NEAR(d.data<float>()[i], expected, allowed) << "element " << i << ", " << count << " threads";
    }
    for (int64_t i = 0; c.row_sums && i < c.m; ++i)
      ASSERT_NEAR(sums.data<float>()[i], want_sums[size_t(i)], 1e-6 * (1 + std::abs(want_sums[size_t(i)])));
    const std::vector<float> got = d.to_vector<float>();
    if (count == 1) of_one_thread = got;
    if (c.trans_a && c.k >= 1024) {
      EXPECT_EQ(got, of_one_thread) << count << " threads";
    }
  }
  omp_set_num_threads(threads);
}

INSTANTIATE_TEST_SUITE_P(
    Tall, CpuProduct,
    testing::Values(Case{1, 1, 1, false, true, 1, 0, true, false},           // smallest
                    Case{700, 33, 65, false, true, 1, 0, true, false},       // two threads cut it, 16 do not
                    Case{5000, 10, 7, false, true, 0.5, 0, true, false},     // with 16 threads too
                    Case{2049, 17, 40, false, false, 1, 1, false, false},    // added to what was there
                    Case{2049, 17, 40, false, false, 1, 0.25, true, false},  // and a bias
                    Case{2049, 5, 129, false, true, 1, 0, true, false},      // too many terms to be cut
                    Case{300, 20, 30, true, false, 1, 0, true, false},       // a transposed, few terms
                    Case{40, 24, 1023, true, false, 1, 0, false, false},     // just too few terms to be cut
                    Case{40, 24, 1024, true, false, 1, 0, false, true},      // and just enough
                    Case{4, 16, 2000, true, false, 1, 0, true, false},       // a bias after the parts
                    Case{1, 3, 3001, true, false, 2, 0.5, true, true},       // and beside row_sums
                    Case{65, 33, 2500, true, false, 1, 1, false, false},     //
                    Case{29, 48, 2500, true, false, 1, 0, false, true}));    // columns in whole vectors

INSTANTIATE_TEST_SUITE_P(
    Wide, CpuProduct,
    testing::Values(Case{8, 100, 40, false, true, 1, 0, true, false, true},       // fewest rows
                    Case{24, 1, 1, false, true, 1, 0, true, false, true},         // one column
                    Case{24, 3, 0, false, true, 1, 0, true, false, true},         // no terms: the bias
                    Case{30, 200, 33, false, true, 1, 0, true, false, true},      // shared by columns too
                    Case{113, 16, 256, false, true, 1, 0, true, false, false},    // half a panel, two blocks
                    Case{113, 17, 257, false, false, 0.5, 2, true, false, true},  // two parts of the terms
                    Case{45, 47, 515, false, true, 1, 1, false, false, true},     // three
                    Case{45, 49, 515, false, false, 2, 0, false, false, false, true},
                    Case{57, 80, 20, false, false, 1, 0, false, false, false, true},
                    Case{130, 40, 1024, false, true, 1, 0, true, false, true}));  // rows of a far apart

// Products of a batch share the threads or each is shared by them; rows, terms and strides of both kinds.
TEST(CpuProducts, OfABatchAreThoseOfEachAlone) {
  Rng rng(0, "batch");
  struct Shape {
    int64_t batch, m, n, k;
    bool trans_b;
  };
  for (const Shape& s :
       {Shape{5, 30, 20, 33, true}, Shape{3, 7, 20, 33, false}, Shape{2, 300, 200, 190, true}}) {
    const int64_t lda = 2 * s.k, ldd = s.batch * s.n;  // d of all beside one another
    const Tensor a = rand_normal({s.batch * s.m * lda}, 0, 1, rng);
    const Tensor b = rand_normal({s.batch * s.n * s.k}, 0, 1, rng);
    const Tensor d = empty({s.m * ldd}, {DType::f32, kCPU});
    Product p{.trans_b = s.trans_b, .m = s.m, .n = s.n, .k = s.k, .lda = lda, .ldd = ldd};
    p.batch = s.batch, p.stride_a = s.m * lda, p.stride_b = s.n * s.k, p.stride_d = s.n;
    const int threads = omp_get_max_threads();
    for (int count : {1, 3}) {
      omp_set_num_threads(count);
      matrix_product(p, a.data_ptr(), b.data_ptr(), d.data_ptr());
      for (int64_t i = 0; i < s.batch; ++i) {
        const float *x = a.data<float>() + i * p.stride_a, *y = b.data<float>() + i * p.stride_b;
        for (int64_t r = 0; r < s.m; ++r)
          for (int64_t c = 0; c < s.n; ++c) {
            double want = 0, size = 0;
            for (int64_t q = 0; q < s.k; ++q) {
              const double term = double(x[r * lda + q]) * y[s.trans_b ? c * s.k + q : q * s.n + c];
              want += term, size += std::abs(term);
            }
            ASSERT_NEAR(d.data<float>()[r * ldd + i * s.n + c], want, double(s.k + 4) * 0x1p-24 * size)
                << "product " << i << ", row " << r << ", column " << c << ", " << count << " threads";
          }
      }
    }
    omp_set_num_threads(threads);
  }
}

}  // namespace
}  // namespace occam
