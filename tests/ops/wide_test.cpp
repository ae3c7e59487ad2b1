// The code by vectors of 64 bytes, called as it is, so that it runs under the address sanitizer too, where
// wide_vectors() is false and the compiler makes what the processor has of it. Every buffer is exactly as
// large as it says, and a heap block of its own.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "core/rng.h"
#include "core/tensor.h"
#include "core/vmath.h"
#include "ops/attention/cpu.h"
#include "ops/wide_product.h"

namespace occam {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr bool kAnyProcessor = true;
#else
constexpr bool kAnyProcessor = false;
#endif

class Wide : public testing::Test {
 protected:
  void SetUp() override {
    if (!kAnyProcessor && !wide_vectors()) GTEST_SKIP() << "no vectors of 64 bytes here";
  }
};

class WideProducts : public Wide {};
class WideAttention : public Wide {};

/// Size numbers, normal or all the same, nothing beside them.
struct Floats {
  std::unique_ptr<float[]> of;
  size_t size;
  explicit Floats(int64_t n, float value = NAN) : of(new float[size_t(n)]), size(size_t(n)) {
    std::fill_n(of.get(), size, value);
  }
  Floats(int64_t n, Rng& rng) : Floats(n) {
    const Tensor from = rand_normal({n}, 0, 1, rng);
    std::copy_n(from.data<float>(), size, of.get());
  }
  float& operator[](int64_t i) const { return of[size_t(i)]; }
  float* data() const { return of.get(); }
};

enum class Form { packed, rows, packing };

struct Case {
  int64_t m, n, k, gap;  // rows of a, b and d are so much further apart than they are long
  bool trans_a, trans_b, bias;
  float alpha, beta;
  Form form;
};

void product_is_the_sum(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.m << " x " << c.n << " x " << c.k << " gap " << c.gap);
  Rng rng(0, "wide");
  const int64_t lda = (c.trans_a ? c.m : c.k) + c.gap, ldb = (c.trans_b ? c.k : c.n) + c.gap,
                ldd = c.n + c.gap;
  // Behind the last row there is no gap.
  auto extent = [](int64_t rows, int64_t width, int64_t ld) {
    return rows == 0 || width == 0 ? 0 : (rows - 1) * ld + width;
  };
  const Floats a(c.trans_a ? extent(c.k, c.m, lda) : extent(c.m, c.k, lda), rng);
  const Floats b(c.trans_b ? extent(c.n, c.k, ldb) : extent(c.k, c.n, ldb), rng);
  const Floats bias(c.n, rng), before(extent(c.m, c.n, ldd), rng), d(extent(c.m, c.n, ldd));
  if (c.beta != 0) std::copy_n(before.data(), before.size, d.data());
  for (int64_t i = 0; i < c.m; ++i)  // what lies between the rows must stay
    for (int64_t j = c.n; j < ldd && i + 1 < c.m; ++j) d[i * ldd + j] = -7;
  WideProduct p{.trans_a = c.trans_a, .m = c.m, .n = c.n, .k = c.k, .a = a.data(), .lda = lda};
  p.b = b.data(), p.ldb = ldb, p.d = d.data(), p.ldd = ldd, p.alpha = c.alpha, p.beta = c.beta;
  if (c.bias) p.bias = bias.data();
  const Floats packed(wide_packed(c.k, c.n));
  if (c.form == Form::packing) {
    wide_product_packing(p, c.trans_b);
  } else {
    if (c.form == Form::packed) {
      wide_pack(c.trans_b, b.data(), ldb, c.k, c.n, 0, (c.n + kWideColumns - 1) / kWideColumns,
                packed.data());
      p.b = packed.data(), p.ldb = 0;
    }
    wide_product(p);
  }
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      double want = (c.bias ? double(bias[j]) : 0.0) + (c.beta != 0 ? c.beta * before[i * ldd + j] : 0.0);
      double size = std::abs(want);
      for (int64_t q = 0; q < c.k; ++q) {
        const double term = double(c.alpha) * (c.trans_a ? a[q * lda + i] : a[i * lda + q]) *
                            (c.trans_b ? b[j * ldb + q] : b[q * ldb + j]);
        want += term, size += std::abs(term);
      }
      ASSERT_NEAR(d[i * ldd + j], want, double(c.k + 4) * 0x1p-24 * size + 1e-30)
          << "row " << i << ", column " << j;
    }
    for (int64_t j = c.n; j < ldd && i + 1 < c.m; ++j) ASSERT_EQ(d[i * ldd + j], -7) << "beside row " << i;
  }
}

TEST_F(WideProducts, AreSumsWhateverTheStrides) {
  for (Form form : {Form::packed, Form::packing})
    for (bool trans_b : {false, true})
      for (const Case& c : {Case{1, 1, 1, 0, false, trans_b, true, 1, 0, form},
                            Case{3, 7, 0, 2, false, trans_b, true, 1, 0, form},
                            Case{9, 48, 16, 0, false, trans_b, false, 1, 0, form},
                            Case{10, 49, 17, 3, false, trans_b, true, 0.5, 2, form},
                            Case{8, 97, 193, 5, false, trans_b, true, 1, 1, form},  // two parts of the terms
                            Case{113, 33, 40, 1, false, trans_b, false, 2, 0, form},  // two blocks of rows
                            Case{5, 64, 512, 0, false, trans_b, true, 1, 0, form},    // rows of a far apart
                            Case{19, 31, 25, 4, true, trans_b, true, 1, 0.25, form}})
        product_is_the_sum(c);
  for (bool trans_a : {false, true})  // b as it is
    for (int64_t n : {16, 48, 80})
      product_is_the_sum({21, n, 200, 6, trans_a, false, true, 1.5, 1, Form::rows});
}

TEST_F(WideProducts, PackVectorsWithZerosBeside) {
  Rng rng(0, "wide");
  for (bool trans : {false, true})
    for (int64_t k : {1, 15, 16, 35})
      for (int64_t columns : {1, 15, 16}) {
        const int64_t ld = (trans ? k : columns) + 3, ld_to = 24;
        const Floats from(((trans ? columns : k) - 1) * ld + (trans ? k : columns), rng);
        const Floats to((k - 1) * ld_to + 16);
        wide_pack_vector(trans, from.data(), ld, k, columns, to.data(), ld_to);
        for (int64_t i = 0; i < k; ++i)
          for (int64_t j = 0; j < 16; ++j)
            ASSERT_EQ(to[i * ld_to + j], j >= columns ? 0.0f : from[trans ? j * ld + i : i * ld + j])
                << "term " << i << ", column " << j << " of " << columns;
      }
}

/// Against the same in doubles by the other path (attention/cpu.cpp), itself checked by the op's suite.
void attention_agrees(int64_t b, int64_t t, int64_t h, int64_t d, bool masked) {
  SCOPED_TRACE(testing::Message() << b << " " << t << " " << h << " " << d << (masked ? " masked" : ""));
  Rng rng(0, "wide");
  const int64_t rows = b * t, c = h * d;
  const Floats qkv(rows * 3 * c, rng), gy(rows * c, rng), y(rows * c), lse(b * h * t), gqkv(rows * 3 * c);
  const std::unique_ptr<uint8_t[]> mask(new uint8_t[size_t(rows)]);
  for (int64_t i = 0; i < rows; ++i)
    mask[size_t(i)] = i / t == 0 ? 0 : i % 3 != 1;  // of image 0: no key at all
  AttentionCpu<float> a{.b = b, .t = t, .h = h, .d = d, .scale = 0.3, .qkv = qkv.data()};
  a.key_mask = masked ? mask.get() : nullptr, a.y = y.data(), a.lse = lse.data();
  attention_forward_wide(a);
  a.gy = gy.data(), a.gqkv = gqkv.data();
  attention_backward_wide(a);

  auto doubles = [](const Floats& f) { return std::vector<double>(f.data(), f.data() + f.size); };
  std::vector<double> qkv64 = doubles(qkv), gy64 = doubles(gy), y64(y.size), lse64(lse.size),
                      gqkv64(gqkv.size);
  AttentionCpu<double> w{.b = b, .t = t, .h = h, .d = d, .scale = 0.3, .qkv = qkv64.data()};
  w.key_mask = a.key_mask, w.y = y64.data(), w.lse = lse64.data(), w.gy = gy64.data(), w.gqkv = gqkv64.data();
  attention_forward_cpu(w);
  attention_backward_cpu(w);
  // Four sums follow one another (scores, rows of probabilities, outputs, gradients), each of at most t + d
  // terms, which a few roundings make, of magnitudes that add up to at most 4 of what comes out: 4 x 4.
  const double allowed = double(t + d + 8) * 0x1p-24 * 16;
  auto near = [&](const Floats& got, const std::vector<double>& want, const char* what) {
    for (size_t i = 0; i < want.size(); ++i) {
      if (std::isinf(want[i]))
        ASSERT_EQ(double(got[int64_t(i)]), want[i]) << what << " " << i;
      else
        ASSERT_NEAR(got[int64_t(i)], want[i], allowed * (1 + std::abs(want[i]))) << what << " " << i;
    }
  };
  near(y, y64, "y");
  near(lse, lse64, "lse");
  near(gqkv, gqkv64, "gqkv");
}

TEST_F(WideAttention, AgreesWithDoubles) {
  for (bool masked : {false, true}) {
    attention_agrees(1, 1, 1, 1, masked);
    attention_agrees(2, 17, 3, 5, masked);
    attention_agrees(2, 16, 1, 16, masked);
    attention_agrees(2, 115, 2, 24, masked);  // two tiles of the backward, more of the forward
  }
}

}  // namespace
}  // namespace occam
