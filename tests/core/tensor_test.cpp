#include "core/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/grad_mode.h"
#include "core/pattern.h"
#include "core/ragged.h"
#include "core/rng.h"
#include "core/scope.h"

namespace occam {
namespace {

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

Tensor iota(const Shape& shape) {
  std::vector<float> v(size_t(shape.numel()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = float(i);
  return from_vector(v, shape);
}

TEST(Shape, NumelOverflowIsAnError) {
  EXPECT_EQ((Shape{3, 0, int64_t(1) << 62}).numel(), 0);
  EXPECT_NE(message_of([] {
              (void)Shape({int64_t(1) << 40, int64_t(1) << 40}).numel();
            }).find("more elements"),
            std::string::npos);
  EXPECT_NE(message_of([] { (void)empty({int64_t(1) << 61}); }).find("larger than memory"),
            std::string::npos);
}

TEST(Shape, Broadcast) {
  EXPECT_EQ(broadcast_shapes({4, 1, 3}, {5, 1}), Shape({4, 5, 3}));
  EXPECT_EQ(broadcast_shapes({1}, {0}), Shape({0}));
  EXPECT_NE(message_of([] { broadcast_shapes({2, 3}, {2}); }).find("do not broadcast"), std::string::npos);
}

TEST(Half, Bf16RoundsToNearestEven) {
  EXPECT_EQ(float(bf16(1.0f + 1.0f / 256)), 1.0f);               // tie: even is below
  EXPECT_EQ(float(bf16(1.0f + 3.0f / 256)), 1.0f + 4.0f / 256);  // tie: even is above
  EXPECT_TRUE(std::isnan(float(bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isinf(float(bf16(std::numeric_limits<float>::max()))));
}

TEST(Half, F16EveryValueSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    f16 h;
    h.bits = uint16_t(bits);
    float value = float(h);
    if (std::isnan(value)) continue;
    ASSERT_EQ(f16(value).bits, h.bits) << bits;
  }
  EXPECT_EQ(float(f16(65519.0f)), 65504.0f);
  EXPECT_TRUE(std::isinf(float(f16(65520.0f))));
  EXPECT_EQ(float(f16(std::ldexp(1.0f, -25))), 0.0f);  // tie to even: zero
  EXPECT_EQ(float(f16(std::ldexp(3.0f, -26))), std::ldexp(1.0f, -24));
  EXPECT_EQ(float(f16(1.0f + std::ldexp(1.0f, -11))), 1.0f);
}

TEST(Tensor, ViewsShareMemoryAndVersion) {
  Tensor a = iota({2, 3, 4});
  Tensor v = raw::select(raw::transpose(a, 0, 2), 1, 1);  // [4,2]
  EXPECT_EQ(v.to_vector<float>(), (std::vector<float>{4, 16, 5, 17, 6, 18, 7, 19}));
  uint64_t version = a.version();
  v.fill_(1);
  EXPECT_GT(a.version(), version);
  EXPECT_EQ(a.to_vector<float>()[5], 1);
}

TEST(Tensor, ReshapeKeepsAViewWhereStridesAllow) {
  Tensor a = iota({4, 6});
  Tensor columns = raw::slice(a, 1, 0, 3);
  Tensor split = raw::reshape(columns, {2, 2, 3});
  EXPECT_EQ(split.data_ptr(), a.data_ptr());
  EXPECT_EQ(split.to_vector<float>(), columns.to_vector<float>());
  // Axes of one element have strides like the others, so that who asks for whole pieces of 8 is not refused.
  Tensor part = raw::slice(zeros({4, 3, 16}, {DType::f32, kCPU}), 2, 8, 8);
  EXPECT_EQ(raw::reshape(part, {1, 4, 3, 1, 8, 1}).strides(), (Shape{192, 48, 16, 8, 1, 1}));
  Tensor flat = raw::reshape(columns, {-1});
  EXPECT_NE(flat.data_ptr(), a.data_ptr());
  EXPECT_EQ(flat.to_vector<float>(), columns.to_vector<float>());
  EXPECT_EQ(raw::reshape(raw::transpose(a, 0, 1), {3, 2, 4}).to_vector<float>(),
            raw::transpose(a, 0, 1).to_vector<float>());
  EXPECT_NE(message_of([&] { raw::reshape(a, {5, -1}); }).find("do not fit"), std::string::npos);
}

TEST(Tensor, CopyConvertsAndBroadcasts) {
  Tensor a = zeros({2, 3}, {DType::i32, kCPU});
  a.copy_(from_vector(std::vector<double>{1.9, -1.9, 7}));
  EXPECT_EQ(a.to_vector<int64_t>(), (std::vector<int64_t>{1, -1, 7, 1, -1, 7}));
  EXPECT_EQ(raw::to(from_vector(std::vector<float>{0, 0.1f, -2}), DType::bool_).to_vector<int32_t>(),
            (std::vector<int32_t>{0, 1, 1}));
}

TEST(Pattern, ErrorNamesAxisShapesAndHint) {
  Contract c("x: ... i, w: o i, b?: o -> ... o");
  Shape x{8, 197, 192}, w{576, 384};
  Scope block("blocks.3");
  Scope layer("attn.qkv");
  std::string text = message_of([&] { c.bind("linear", {&x, &w, nullptr}, "weights are stored (out, in)"); });
  EXPECT_EQ(text,
            "linear: axis `i` is 192 in x [8,197,192] but 384 in w [576,384]\n"
            "  contract  x: ... i, w: o i, b?: o -> ... o\n"
            "  hint      weights are stored (out, in)\n"
            "  where     blocks.3.attn.qkv");
}

TEST(Pattern, MultiplesNumbersVariadicAndMissing) {
  Contract lstm("w: 2 h 4*w w -> h");
  Shape good{2, 3, 32, 8}, bad{2, 3, 30, 8}, three{3, 3, 32, 8};
  EXPECT_EQ(lstm.bind("lstm", {&good}).sizes.at("w"), 8);
  EXPECT_NE(message_of([&] { lstm.bind("lstm", {&bad}); }).find("not a multiple of 4"), std::string::npos);
  EXPECT_NE(message_of([&] { lstm.bind("lstm", {&three}); }).find("has 3 where 2 is needed"),
            std::string::npos);
  EXPECT_NE(message_of([&] { lstm.bind("lstm", {nullptr}); }).find("input w is missing"), std::string::npos);
  Contract concat("xs*: * -> *");
  EXPECT_NO_THROW(concat.bind("concat", {&good, &bad, &three}));
  EXPECT_NE(message_of([&] { concat.bind("concat", {}); }).find("0 inputs given"), std::string::npos);
}

TEST(Philox, KnownAnswers) {
  // Random123's published vectors for philox4x32-10.
  Philox4 zero = philox4x32(0, 0, 0);
  EXPECT_EQ(zero.v[0], 0x6627e8d5u);
  EXPECT_EQ(zero.v[1], 0xe169c58du);
  EXPECT_EQ(zero.v[2], 0xbc57ac4cu);
  EXPECT_EQ(zero.v[3], 0x9b00dbd8u);
  Philox4 ones = philox4x32(~0ull, ~0ull, ~0ull);
  EXPECT_EQ(ones.v[0], 0x408f276du);
  EXPECT_EQ(ones.v[1], 0x41c83b0eu);
  EXPECT_EQ(ones.v[2], 0xa20bc7c6u);
  EXPECT_EQ(ones.v[3], 0x6d5451fdu);
}

TEST(Rng, MomentsAndBounds) {
  Rng rng(1, "moments");
  double sum = 0, squares = 0;
  const int n = 100000;
  for (int i = 0; i < n; ++i) {
    double x = rng.normal();
    sum += x, squares += x * x;
    int64_t k = rng.below(7);
    ASSERT_TRUE(k >= 0 && k < 7);
  }
  EXPECT_LT(std::abs(sum / n), 5 / std::sqrt(double(n)));  // five standard errors
  EXPECT_LT(std::abs(squares / n - 1), 5 * std::sqrt(2.0 / n));
}

TEST(OpRandom, KeysDependOnPathAndCallOnly) {
  op_random::seed(3);
  op_random::begin_step(kCPU);
  uint64_t a, b;
  {
    Scope s("drop");
    a = op_random::next_key();
    b = op_random::next_key();
  }
  EXPECT_NE(a, b);
  op_random::begin_step(kCPU);
  op_random::next_key();  // another path: does not shift the others
  Scope s("drop");
  EXPECT_EQ(op_random::next_key(), a);
  EXPECT_EQ(op_random::step_tensor(kCPU).item(), 2);
}

TEST(Allocator, PlannedFailureAndRedZones) {
  set_alloc_test_mode({.red_zones = true});
  Tensor t = empty({10});
  t.data<float>()[10] = 1;
  EXPECT_EQ(check_red_zones(), 1);
  t = Tensor();
  check_red_zones();
  set_alloc_test_mode({.fail_after = 1});
  Tensor fine = empty({4});
  EXPECT_NE(message_of([] { (void)empty({4}); }).find("planned failure"), std::string::npos);
  set_alloc_test_mode({});
}

TEST(Ragged, PackAndChecks) {
  Tensor data = iota({2, 3, 2});
  Tensor keep = raw::to(from_vector(std::vector<int32_t>{1, 0, 1, 0, 0, 0}, {2, 3}), DType::u8);
  Ragged r = make_ragged(data, keep, 4);
  check_contents(r);
  EXPECT_EQ(r.offsets.to_vector<int32_t>(), (std::vector<int32_t>{0, 2, 2}));
  EXPECT_EQ(raw::slice(r.data, 0, 0, 2).to_vector<float>(), (std::vector<float>{0, 1, 4, 5}));
  EXPECT_EQ(make_ragged(data, keep, 1).overflow.item(), 1);
  Ragged broken = r;
  broken.offsets = from_vector(std::vector<int32_t>{0, 3, 2});
  EXPECT_NE(message_of([&] { check_contents(broken); }).find("offsets fall from 3 to 2"), std::string::npos);
  broken.offsets = from_vector(std::vector<float>{0, 2, 2});
  EXPECT_NE(message_of([&] { check_structure(broken); }).find("offsets"), std::string::npos);
  broken = r;
  broken.longest = 1;
  EXPECT_NE(message_of([&] { check_contents(broken); }).find("has 2 rows, the longest 1"), std::string::npos);
}

TEST(Ragged, Sequences) {
  Tensor data = iota({2, 3, 2});
  Tensor keep = raw::to(from_vector(std::vector<int32_t>{1, 0, 1, 0, 0, 1}, {2, 3}), DType::u8);
  const Sequences s = make_ragged(data, keep, 5).sequences();
  EXPECT_EQ(s.longest, 2);
  EXPECT_EQ(s.count(), 2);
  Tensor x = ones({5, 3});
  check_sequences("op", s, x);
  check_sequences("op", {}, x);
  const SequenceRows rows = sequence_rows(s.offsets, s.longest, 5);
  EXPECT_EQ(rows.begin(1), 2);
  EXPECT_EQ(rows.length(1), 1);
  EXPECT_EQ(rows.rows(), 5);
  EXPECT_EQ(rows.used(), 3);
  EXPECT_EQ((SequenceRows{2, 7}.begin(1)), 7);
  EXPECT_EQ((SequenceRows{2, 7}.sequence_of(7)), 1);
  const std::vector<int32_t> with_empty{0, 0, 2, 2, 2, 5, 5};
  std::vector<int64_t> owners;
  for (int64_t row = 0; row < 5; ++row)
    owners.push_back(SequenceRows{6, 3, with_empty.data(), 9}.sequence_of(row));
  EXPECT_EQ(owners, (std::vector<int64_t>{1, 1, 4, 4, 4}));
  clear_unused_rows(x, s.offsets, 5);
  EXPECT_EQ(x.to_vector<float>(), (std::vector<float>{1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0}));

  auto message = [&](const Sequences& wrong, const Tensor& of) {
    return message_of([&] { check_sequences("op", wrong, of); });
  };
  auto offsets = [](std::vector<int32_t> v) { return from_vector(v); };
  EXPECT_NE(message({from_vector(std::vector<float>{0, 1}), 1}, x).find("op: offsets are f32 [2]"),
            std::string::npos);
  EXPECT_NE(message({raw::select(zeros({3, 2}, {DType::i32, kCPU}), 1, 0), 0}, x).find("contiguous i32"),
            std::string::npos);
  EXPECT_NE(message(s, ones({2, 3})).find("op: offsets run from 0 to 3, there are 2 rows"),
            std::string::npos);
  EXPECT_NE(message({offsets({0, 3}), 2}, x).find("sequence 0 has 3 rows, the longest 2"), std::string::npos);
  EXPECT_NE(message({offsets({0, 3, 1}), 3}, x).find("sequence 1 has -2 rows"), std::string::npos);
}

}  // namespace
}  // namespace occam
