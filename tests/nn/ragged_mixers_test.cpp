// Mixers on sequences of different lengths without padding, held against each sequence alone.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/device.h"
#include "core/grad_mode.h"
#include "nn/mixers/mixer.h"
#include "tests/core/expect_error.h"
#include "tests/nn/rule.h"

namespace occam {
namespace {

struct Case {
  std::string mixer;
  MixerOptions options;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  out << c.mixer;
  for (const auto& [key, value] : c.options) out << "_" << key << "_" << value;
  return out;
}

const MixerShape kShape{16, 2, 3, 4, 1};

std::unique_ptr<TokenMixer> made(const Case& c) {
  auto mixer = make_mixer(c.mixer, kShape, c.options);
  initialize(*mixer, 5);
  return mixer;
}

std::vector<Case> taking() {
  std::vector<Case> cases;
  for (const MixerEntry& entry : mixer_table())
    if (made({entry.name, {}})->takes_ragged()) cases.push_back({entry.name, {}});
  for (const char* name : {"mingru", "minlstm"}) cases.push_back({name, {{"gates", "dense"}}});
  cases.push_back({"linear_attention", {{"gate", "decay"}}});
  cases.push_back({"mamba2", {{"variant", "hydra"}}});
  return cases;
}

class RaggedMixer : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(All, RaggedMixer, ::testing::ValuesIn(taking()),
                         [](const auto& info) { return ::testing::PrintToString(info.param); });

const std::vector<int64_t> kLengths{4, 0, 1, 9, 0};
constexpr int64_t kUsed = 14, kCapacity = 17;

/// Rows by rule with NaN in those of no sequence.
Tensor rows(const std::string& text, DType dtype, Device device) {
  Tensor t = rule::tensor(text, {kCapacity, kShape.dim}, 0, 1.7);
  raw::slice(t, 0, kUsed, kCapacity - kUsed).fill_(std::numeric_limits<double>::quiet_NaN());
  return raw::to(raw::to(t, dtype), device);
}

Ragged ragged_of(const Tensor& data) {
  std::vector<int32_t> offsets{0}, index;
  for (int64_t n : kLengths) {
    for (int64_t i = 0; i < n; ++i) index.push_back(int32_t(i));
    offsets.push_back(offsets.back() + int32_t(n));
  }
  index.resize(size_t(kCapacity), 0);
  auto on_device = [&](const std::vector<int32_t>& v) { return raw::to(from_vector(v), data.device()); };
  return {data, on_device(offsets), on_device(index), on_device({int32_t(kUsed)}), on_device({0}), 10};
}

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  double d = 0, n = 0;
  for (size_t i = 0; i < a.size(); ++i) d += (a[i] - b[i]) * (a[i] - b[i]), n += b[i] * b[i];
  return std::sqrt(d / std::max(n, 1e-30));
}

std::vector<double> host(const Tensor& t) { return detach(t).to_vector<double>(); }

/// Output and gradients of the input by rows, then those of the parameters.
struct Run {
  std::vector<double> y, tap, gx;
  std::vector<std::pair<std::string, std::vector<double>>> parameters;
  explicit Run(TokenMixer& mixer) {
    for (auto& [name, p] : mixer.named_parameters()) parameters.emplace_back(name, host(p->grad()));
  }
};

Run packed(const Case& c, DType dtype, Device device) {
  auto mixer = made(c);
  mixer->set_compute_dtype(dtype);
  mixer->to(device);
  Tensor x = rows("ragged/x", dtype, device);
  set_requires_grad(x, true);
  const Ragged y = (*mixer)(ragged_of(x));
  backward(y.data, rows("ragged/gy", dtype, device));
  Run run(*mixer);
  run.y = host(y.data), run.gx = host(grad_of(x));
  NoGrad no_grad;  // another way through some cores
  run.tap = host(mixer->heads(ragged_of(detach(x))).data);
  return run;
}

/// Gradients of parameters add up over the sequences.
Run alone(const Case& c, DType dtype, Device device) {
  auto mixer = made(c);
  mixer->set_compute_dtype(dtype);
  mixer->to(device);
  const Tensor all = rows("ragged/x", dtype, device), all_gy = rows("ragged/gy", dtype, device);
  std::vector<double> y, tap, gx;
  auto append = [](std::vector<double>& to, const std::vector<double>& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  int64_t begin = 0;
  for (int64_t n : kLengths) {
    auto part = [&](const Tensor& t) {
      return raw::clone(raw::reshape(raw::slice(t, 0, begin, n), {1, n, kShape.dim}));
    };
    if (n == 0) continue;
    Tensor x = part(all);
    set_requires_grad(x, true);
    Tensor out = (*mixer)(x);
    backward(out, part(all_gy));
    append(y, host(out)), append(gx, host(grad_of(x)));
    NoGrad no_grad;
    append(tap, host(mixer->heads(detach(x))));
    begin += n;
  }
  for (auto* v : {&y, &tap, &gx}) v->resize(size_t(kCapacity * kShape.dim), 0.0);
  Run run(*mixer);
  run.y = y, run.tap = tap, run.gx = gx;
  return run;
}

// Sums over tokens come in another order, and each of about ten ops rounds: as between a GPU and a CPU.
void compare(const Case& c, DType dtype, Device device) {
  const Run got = packed(c, dtype, device), want = alone(c, dtype, device);
  const double allowed = 20 * (dtype == DType::f32 ? 0x1p-23 : 0x1p-8);
  EXPECT_LE(difference(got.y, want.y), allowed);
  EXPECT_LE(difference(got.tap, want.tap), allowed);
  EXPECT_LE(difference(got.gx, want.gx), allowed);
  for (size_t i = 0; i < got.parameters.size(); ++i)
    EXPECT_LE(difference(got.parameters[i].second, want.parameters[i].second), allowed)
        << got.parameters[i].first;
  for (size_t i = size_t(kUsed * kShape.dim); i < got.y.size(); ++i)
    EXPECT_TRUE(got.y[i] == 0 && got.tap[i] == 0 && got.gx[i] == 0) << "unused element " << i;
}

TEST_P(RaggedMixer, EqualsEachSequenceAlone) {
  for (DType dtype : {DType::f32, DType::bf16}) compare(GetParam(), dtype, kCPU);
}

TEST_P(RaggedMixer, EqualsEachSequenceAloneOnGpu) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  for (DType dtype : {DType::f32, DType::bf16}) compare(GetParam(), dtype, cuda_device());
}

TEST(RaggedMixers, OthersSayWhyNot) {
  const Ragged x = ragged_of(zeros({kCapacity, kShape.dim}));
  auto refuses = [&](const Case& c, const std::string& why) {
    auto mixer = made(c);
    EXPECT_FALSE(mixer->takes_ragged()) << c.mixer;
    EXPECT_OCCAM_ERROR((*mixer)(x), ErrorKind::usage, "takes no ragged input: " + why);
    EXPECT_OCCAM_ERROR(mixer->heads(x), ErrorKind::usage, "takes no ragged input: " + why);
  };
  std::vector<std::string> others;
  for (const MixerEntry& entry : mixer_table())
    if (!made({entry.name, {}})->takes_ragged()) others.push_back(entry.name), refuses({entry.name, {}}, "");
  // A mixer that stops taking it would leave the tests above without a word.
  const std::vector<std::string> known{"attention", "bilstm2d", "dwconv",   "fresh_attention",
                                       "identity",  "pool",     "token_mlp"};
  EXPECT_EQ(others, known);
  refuses({"attention", {}}, "its core is made for whole images");
  refuses({"mingru", {{"scan", "column"}}}, "an order other than the model's");
  refuses({"mamba", {{"cross_scan", "true"}}}, "cross_scan has the columns of a whole patch grid");
}

}  // namespace
}  // namespace occam
