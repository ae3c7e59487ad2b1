// Mixers that stand on linear scans: options beyond what every mixer is asked.
#include <gtest/gtest.h>

#include <cmath>

#include "core/grad_mode.h"
#include "nn/mixers/mixer.h"
#include "nn/plan.h"
#include "tests/core/expect_error.h"
#include "tests/nn/rule.h"

namespace occam {
namespace {

void expect_ledger(const char* name, const MixerShape& s, const MixerOptions& options) {
  const int64_t t = s.tokens();
  auto mixer = make_mixer(name, s, options);
  const MixerLedger ledger = find_mixer(name).ledger(s, t, options);
  EXPECT_EQ(mixer->parameter_count(), ledger.params) << name;
  EXPECT_EQ(plan_of(*mixer, {1, t, s.dim}).total().macs, ledger.macs) << name;
}

TEST(ScanMixers, LedgersOfOptions) {
  const MixerShape s{24, 2, 3, 4, 1};
  for (const char* name : {"mingru", "minlstm"}) {
    expect_ledger(name, s, {{"hidden", "5"}});
    expect_ledger(name, s, {{"gates", "dense"}, {"hidden", "7"}});
  }
  expect_ledger("mamba", s, {{"cross_scan", "true"}, {"state", "3"}, {"dt_rank", "5"}, {"conv", "2"}});
  expect_ledger("s4d", s, {{"state", "5"}});
}

TEST(ScanMixers, PublishedMinGruParameters) {
  // 2 c^2 + 391 c and 2 c^2 + 521 c for heads of 64.
  EXPECT_EQ(find_mixer("mingru").ledger({384, 6}, 197, {}).params, 2 * 384 * 384 + 391 * 384);
  EXPECT_EQ(find_mixer("minlstm").ledger({384, 6}, 197, {}).params, 2 * 384 * 384 + 521 * 384);
  EXPECT_EQ(find_mixer("mingru").ledger({384, 6}, 197, {}).sequential_depth, 9);
  EXPECT_EQ(find_mixer("mingru").ledger({384, 6}, 1, {}).sequential_depth, 1);
}

// Dense gates with a block-diagonal matrix are gates by head: rows by (head, direction, gate, state) against
// [direction, head, gate state].
TEST(ScanMixers, DenseGatesContainGatesByHead) {
  const MixerShape s{12, 3};
  const int64_t w = 4, rows = 2 * w;
  auto by_head = make_mixer("mingru", s), dense = make_mixer("mingru", s, {{"gates", "dense"}});
  rule::fill(*by_head, "by_head");
  std::map<std::string, Parameter*> from, to;
  for (auto& [name, p] : by_head->named_parameters()) from[name] = p;
  for (auto& [name, p] : dense->named_parameters()) to[name] = p;
  for (auto& [name, p] : to)
    if (name.rfind("rnn.", 0) != 0) p->set_values(from[name]->master());
  const auto weight = from["rnn.weight"]->master().to_vector<float>(),
             bias = from["rnn.bias"]->master().to_vector<float>();
  std::vector<float> wide(size_t(3 * 2 * rows * 12), 0.0f), wide_bias(size_t(3 * 2 * rows));
  for (int64_t r = 0; r < 2; ++r)
    for (int64_t h = 0; h < 3; ++h)
      for (int64_t j = 0; j < rows; ++j) {
        const int64_t row = (h * 2 + r) * rows + j, source = (r * 3 + h) * rows + j;
        wide_bias[size_t(row)] = bias[size_t(source)];
        for (int64_t i = 0; i < w; ++i) wide[size_t(row * 12 + h * w + i)] = weight[size_t(source * w + i)];
      }
  to["rnn.weight"]->set_values(from_vector(wide, to["rnn.weight"]->shape()));
  to["rnn.bias"]->set_values(from_vector(wide_bias, to["rnn.bias"]->shape()));
  NoGrad no_grad;
  const Tensor x = rule::tensor("scan_mixers/x", {2, 9, 12}, 0, 1.5);
  const auto a = (*by_head)(x).to_vector<float>(), b = (*dense)(x).to_vector<float>();
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-5) << i;
}

// Four routes see a grid and its transpose alike: with the parameters of rows and columns exchanged, the
// transposed image gives the transposed result.
TEST(ScanMixers, CrossScanIsSymmetric) {
  const MixerShape wide{8, 2, 2, 3, 1}, tall{8, 2, 3, 2, 1};
  const MixerOptions options{{"cross_scan", "true"}};
  auto a = make_mixer("mamba", wide, options), b = make_mixer("mamba", tall, options);
  rule::fill(*a, "cross");
  std::map<std::string, Parameter*> from;
  for (auto& [name, p] : a->named_parameters()) from[name] = p;
  auto exchanged = [](std::string name) {
    const std::string rows = "ssm.scan.", columns = "ssm.columns.";
    if (name.rfind(rows, 0) == 0) return columns + name.substr(rows.size());
    if (name.rfind(columns, 0) == 0) return rows + name.substr(columns.size());
    return name;
  };
  for (auto& [name, p] : b->named_parameters()) p->set_values(from.at(exchanged(name))->master());
  const Tensor x = rule::tensor("scan_mixers/grid", {1, 7, 8}, 0, 1.5);
  Tensor turned = raw::clone(x);
  auto place = [](int64_t i) {
    return i == 0 ? 0 : 1 + (i - 1) % 3 * 2 + (i - 1) / 3;
  };  // of token i in `tall`
  for (int64_t i = 0; i < 7; ++i)
    for (int64_t c = 0; c < 8; ++c) turned.data<float>()[place(i) * 8 + c] = x.data<float>()[i * 8 + c];
  NoGrad no_grad;
  const auto y = (*a)(x).to_vector<float>(), z = (*b)(turned).to_vector<float>();
  for (int64_t i = 0; i < 7; ++i)
    for (int64_t c = 0; c < 8; ++c)
      ASSERT_NEAR(y[size_t(i * 8 + c)], z[size_t(place(i) * 8 + c)], 1e-5) << i << " " << c;
}

TEST(ScanMixers, WrongOptions) {
  EXPECT_OCCAM_ERROR(make_mixer("mingru", {8, 2}, {{"gates", "wide"}}), ErrorKind::usage, "gates");
  EXPECT_OCCAM_ERROR(make_mixer("mamba", {8, 2, 2, 2, 1}, {{"cross_scan", "true"}, {"scan", "column"}}),
                     ErrorKind::usage, "cross_scan has rows and columns");
  EXPECT_OCCAM_ERROR(make_mixer("mamba", {8, 2}, {{"cross_scan", "true"}}), ErrorKind::usage, "grid");
}

}  // namespace
}  // namespace occam
