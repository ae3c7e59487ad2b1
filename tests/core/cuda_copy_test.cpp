// Copies and fills on a GPU against the CPU's, bit for bit: every pair of dtypes, strides of every kind.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/stream.h"
#include "core/tensor.h"

namespace occam {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16,
                            DType::i64, DType::i32, DType::u8,   DType::bool_};

class CudaCopy : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no GPU";
  }
  const Device gpu = cuda_device();
};

/// Equal bits, except that NaNs of any payload are equal. Both on the CPU, contiguous.
void expect_equal_bits(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.shape(), want.shape()) << what;
  ASSERT_EQ(got.dtype(), want.dtype()) << what;
  const size_t unit = size_of(want.dtype());
  const auto* g = static_cast<const char*>(got.data_ptr());
  const auto* w = static_cast<const char*>(want.data_ptr());
  if (std::memcmp(g, w, size_t(want.numel()) * unit) == 0) return;
  const std::vector<double> gv = got.to_vector<double>();
  const std::vector<double> wv = want.to_vector<double>();
  for (size_t i = 0; i < wv.size(); ++i) {
    if (std::isnan(gv[i]) && std::isnan(wv[i])) continue;
    ASSERT_EQ(std::memcmp(g + i * unit, w + i * unit, unit), 0)
        << what << " at " << i << ": " << gv[i] << " instead of " << wv[i];
  }
}

/// Values that every dtype holds or rounds without leaving its range: 0 to 125 in halves, and some that need
/// rounding.
Tensor values(const Shape& shape, DType dtype) {
  std::vector<double> v(size_t(shape.numel()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = double(i * 37 % 251) / 2 + (i % 3 == 0 ? 0.3 : 0);
  return raw::to(from_vector(v, shape), dtype);
}

TEST_F(CudaCopy, EveryPairOfDtypesWithOddStrides) {
  for (DType from : kTypes) {
    for (DType to : kTypes) {
      const std::string what = std::string(name_of(from)) + " -> " + std::string(name_of(to));
      Tensor host = values({3, 6, 7, 5}, from);
      Tensor device = raw::to(host, gpu);
      expect_equal_bits(raw::to(raw::to(device, to), kCPU), raw::to(host, to), what + ", contiguous");
      auto view = [](const Tensor& t) { return raw::slice(raw::permute(t, {2, 0, 3, 1}), 3, 1, 3, 2); };
      auto strided_copy = [&](const Tensor& source, Device place) {
        Tensor wide = full({7, 3, 5, 7}, 1, {to, place});
        raw::slice(wide, 3, 0, 3, 2).copy_(view(source));
        return raw::to(wide, kCPU);
      };
      expect_equal_bits(strided_copy(device, gpu), strided_copy(host, kCPU), what + ", strided");
    }
  }
}

TEST_F(CudaCopy, PacksAndTailsOfTheFastConversions) {
  for (int64_t n : {1, 7, 8, 9, 64, 2048, 2049, 100003}) {
    for (int64_t offset : {0, 1, 8}) {
      Tensor host = values({n + offset}, DType::f32);
      Tensor device = raw::to(host, gpu);
      Tensor host_bf16 = raw::to(raw::slice(host, 0, offset, n), DType::bf16);
      Tensor device_bf16 = raw::to(raw::slice(device, 0, offset, n), DType::bf16);
      expect_equal_bits(raw::to(device_bf16, kCPU), host_bf16, "f32 -> bf16");
      expect_equal_bits(raw::to(raw::to(device_bf16, DType::f32), kCPU), raw::to(host_bf16, DType::f32),
                        "bf16 -> f32");
    }
  }
}

TEST_F(CudaCopy, SpecialFloatsConvertAsOnTheCpu) {
  const double inf = std::numeric_limits<double>::infinity();
  std::vector<double> v = {0.0,       -0.0,   inf,   -inf,   std::nan(""), 65504,  65519.9,
                           65520,     -65536, 1e-8,  6e-8,   3e-8,         1e-40,  -1e-40,
                           3.3895e38, 3.4e38, 1e300, 1e-300, 1.00390625,   1.0117, -2.51,
                           2047.5,    2049,   0.1,   -0.1,   5.96e-8,      6.1e-5, 6.09e-5};
  for (DType from : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    Tensor host = raw::to(from_vector(v), from);
    Tensor device = raw::to(host, gpu);
    for (DType to : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::bool_})
      expect_equal_bits(raw::to(raw::to(device, to), kCPU), raw::to(host, to),
                        std::string(name_of(from)) + " -> " + std::string(name_of(to)));
  }
}

TEST_F(CudaCopy, NegativeAndLargeIntegers) {
  const int64_t big = (int64_t(1) << 53) + 1;
  Tensor host =
      from_vector(std::vector<int64_t>{0, -1, -128, 255, 16777217, -2147483647, 2147483647, big, -big});
  Tensor device = raw::to(host, gpu);
  for (DType to : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i64, DType::i32, DType::bool_})
    expect_equal_bits(raw::to(raw::to(device, to), kCPU), raw::to(host, to),
                      "i64 -> " + std::string(name_of(to)));
}

TEST_F(CudaCopy, SameDtypeViewsOfEveryUnitWidth) {
  // Rows of 16, 8, 4, 2 and 1 bytes' alignment: the copy widens its unit as far as each allows.
  for (DType dtype : {DType::u8, DType::bf16, DType::f32, DType::f64}) {
    for (int64_t width : {16, 8, 4, 2, 1, 3}) {
      for (int64_t offset : {0, 1, 2, 4, 8}) {
        Tensor host = values({4, 3, width + 16}, dtype);
        Tensor device = raw::to(host, gpu);
        auto cut = [&](const Tensor& t) { return raw::transpose(raw::slice(t, 2, offset, width), 0, 1); };
        expect_equal_bits(raw::to(raw::contiguous(cut(device)), kCPU), raw::contiguous(cut(host)),
                          std::string(name_of(dtype)) + " width " + std::to_string(width));
      }
    }
  }
}

TEST_F(CudaCopy, BroadcastSources) {
  Tensor host = values({5, 1, 3}, DType::f32);
  Tensor device = raw::to(host, gpu);
  Tensor wide = raw::contiguous(raw::expand(device, {5, 4, 3}));
  expect_equal_bits(raw::to(wide, kCPU), raw::contiguous(raw::expand(host, {5, 4, 3})), "expand");
}

TEST_F(CudaCopy, FillsOfEveryDtypeAndStride) {
  for (DType dtype : kTypes) {
    for (double value : {0.0, 1.0, 2.7, -0.0}) {
      auto filled = [&](Device place) {
        Tensor t = full({6, 5, 7}, 3, {dtype, place});
        raw::permute(raw::slice(t, 2, 1, 3, 2), {1, 2, 0}).fill_(value);
        Tensor whole = full({17}, value, {dtype, place});
        return std::pair(raw::to(t, kCPU), raw::to(whole, kCPU));
      };
      auto [strided, whole] = filled(gpu);
      auto [strided_cpu, whole_cpu] = filled(kCPU);
      expect_equal_bits(strided, strided_cpu, "strided fill of " + std::string(name_of(dtype)));
      expect_equal_bits(whole, whole_cpu, "fill of " + std::string(name_of(dtype)));
    }
  }
}

TEST_F(CudaCopy, AddScaled) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    for (int64_t n : {1, 3, 8, 1000, 4099}) {
      Tensor a = values({n}, dtype);
      Tensor b = raw::to(from_vector(std::vector<double>(size_t(n), 0.5)), dtype);
      Tensor device = raw::clone(raw::to(a, gpu));
      device.add_(raw::to(b, gpu), -3);
      const std::vector<double> x = a.to_vector<double>();
      const std::vector<double> got = device.to_vector<double>();
      for (size_t i = 0; i < x.size(); ++i) {
        const double want = x[i] - 1.5;  // 0.5 and 3 are exact, so one rounding at most
        ASSERT_LE(std::abs(got[i] - want), 2 * unit_roundoff(dtype) * std::abs(want))
            << name_of(dtype) << " at " << i << " of " << n;
      }
    }
  }
  Tensor none = empty({0}, {DType::f32, gpu});
  none.add_(none, 1);
}

TEST_F(CudaCopy, MoreThan2To31Elements) {
  const int64_t count = (int64_t(1) << 31) + 33;
  Tensor t = full({count}, 3, {DType::u8, gpu});
  raw::slice(t, 0, count - 5, 5).fill_(7);
  Tensor flags = raw::to(t, DType::bool_);     // a conversion kernel over all of it
  raw::slice(t, 0, 1, count / 2, 2).fill_(9);  // every second one, by the strided kernel
  EXPECT_EQ(raw::slice(t, 0, 0, 4).to_vector<double>(), (std::vector<double>{3, 9, 3, 9}));
  const std::vector<double> end = raw::slice(t, 0, count - 5, 5).to_vector<double>();
  EXPECT_EQ(end, (std::vector<double>{7, 9, 7, 9, 7}));
  EXPECT_EQ(raw::slice(flags, 0, count - 2, 2).to_vector<double>(), (std::vector<double>{1, 1}));
}

TEST_F(CudaCopy, StreamsWaitForEachOther) {
  Stream compute = stream_of(gpu, StreamRole::compute);
  Stream copy = stream_of(gpu, StreamRole::copy);
  for (int i = 0; i < 20; ++i) {
    Tensor big = full({1 << 22}, double(i), {DType::f32, gpu});  // on the compute stream
    stream_wait(copy, compute);
    StreamGuard guard(copy);
    EXPECT_EQ(raw::slice(big, 0, (1 << 22) - 1, 1).item(), double(i));
    stream_wait(compute, copy);
  }
}

}  // namespace
}  // namespace occam
