// The original's layout, one wide LSTM under a block-diagonal mask, against its blocks: equal outputs.
#include "nn/mixers/bilstm/wide.h"

#include <gtest/gtest.h>

#include "core/grad_mode.h"
#include "nn/mixers/mixer.h"
#include "nn/state.h"
#include "ops/linear/op.h"
#include "ops/lstm/op.h"
#include "ops/view/op.h"
#include "tests/core/expect_error.h"
#include "tests/nn/rule.h"

namespace occam {
namespace {

constexpr int64_t kHeads = 3, kWidth = 4, kHidden = 5, kDim = kHeads * kWidth, kWide = kHeads * kHidden;

/// Random inside the blocks: row -> block by `row_block`, column by `column_block`.
template <class R, class C>
Tensor masked(const std::string& name, int64_t rows, int64_t columns, R row_block, C column_block) {
  Tensor t = rule::tensor(name, {rows, columns}, 0, 0.8);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      if (row_block(r) != column_block(c)) t.data<float>()[r * columns + c] = 0;
  return t;
}

/// What a checkpoint of the original holds of one mixer; `by_head`: columns of head_proj head by head.
NamedTensors wide_tensors(bool by_head) {
  NamedTensors all;
  auto gate_row = [](int64_t r) { return r / kHidden % kHeads; };
  for (const char* end : {"_l0", "_l0_reverse"}) {
    all.emplace_back(
        std::string("rnn.weight_ih") + end,
        masked(std::string("ih") + end, 4 * kWide, kDim, gate_row, [](int64_t c) { return c / kWidth; }));
    all.emplace_back(
        std::string("rnn.weight_hh") + end,
        masked(std::string("hh") + end, 4 * kWide, kWide, gate_row, [](int64_t c) { return c / kHidden; }));
    for (const char* bias : {"rnn.bias_ih", "rnn.bias_hh"})
      all.emplace_back(std::string(bias) + end, rule::tensor(std::string(bias) + end, {4 * kWide}, 0, 0.5));
  }
  all.emplace_back("head_proj.weight",
                   masked(
                       "head_proj", kDim, 2 * kWide, [](int64_t r) { return r / kWidth; },
                       [&](int64_t c) { return by_head ? c / (2 * kHidden) : c / kHidden % kHeads; }));
  all.emplace_back("head_proj.bias", rule::tensor("head_proj.bias", {kDim}, 0, 0.5));
  for (const char* name : {"pre", "proj"}) {
    all.emplace_back(std::string(name) + ".weight", rule::tensor(name, {kDim, kDim}, 0, 0.5));
    all.emplace_back(std::string(name) + ".bias", rule::tensor(std::string(name) + ".bias", {kDim}, 0, 0.5));
  }
  return all;
}

const Tensor& named(const NamedTensors& all, const std::string& name) {
  for (const auto& [n, t] : all)
    if (n == name) return t;
  throw std::runtime_error(name);
}

/// The heads as the original computes them: dense products and one LSTM over all channels.
Tensor wide_heads(const NamedTensors& all, const Tensor& x, bool by_head) {
  const int64_t b = x.size(0), t = x.size(1);
  auto both = [&](const std::string& part) {
    const Tensor &forward = named(all, part + "_l0"), &reverse = named(all, part + "_l0_reverse");
    std::vector<float> values = forward.to_vector<float>(), more = reverse.to_vector<float>();
    values.insert(values.end(), more.begin(), more.end());
    Shape shape =
        forward.rank() == 2 ? Shape{2, 1, forward.size(0), forward.size(1)} : Shape{2, 1, forward.size(0)};
    return from_vector(values, shape);
  };
  Tensor u = reshape(linear(x, named(all, "pre.weight"), named(all, "pre.bias")), {b, t, 1, kDim});
  Tensor states =
      lstm(u, both("rnn.weight_ih"), both("rnn.weight_hh"), both("rnn.bias_ih"), both("rnn.bias_hh"));
  states = reshape(states, {b, t, 2 * kWide});
  if (by_head)  // [forward | backward] of all heads -> head by head
    states =
        reshape(permute(reshape(states, {b, t, 2, kHeads, kHidden}), {0, 1, 3, 2, 4}), {b, t, 2 * kWide});
  return linear(states, named(all, "head_proj.weight"), named(all, "head_proj.bias"));
}

TEST(WideLstm, BlocksGiveTheSameOutputs) {
  for (bool by_head : {false, true}) {
    const NamedTensors wide = wide_tensors(by_head);
    auto mixer = make_mixer("bilstm", {kDim, kHeads}, {{"hidden", std::to_string(kHidden)}});
    load_state_dict(*mixer, blocks_of_wide_lstm(wide, kHeads));
    const Tensor x = rule::tensor("wide/x", {2, 7, kDim}, 0, 1.5);
    NoGrad no_grad;
    const auto got = mixer->heads(x).to_vector<float>(),
               expected = wide_heads(wide, x, by_head).to_vector<float>();
    ASSERT_EQ(got.size(), expected.size());
    // Sums of up to 2 * kHidden products of size 1, in another order.
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 2e-6) << i;
  }
}

TEST(WideLstm, RefusesWhatBlocksCannotSay) {
  const NamedTensors good = wide_tensors(false);
  auto without = [&](const std::string& name) {
    NamedTensors some;
    for (const auto& item : good)
      if (item.first != name) some.push_back(item);
    return some;
  };
  EXPECT_OCCAM_ERROR(blocks_of_wide_lstm(without("rnn.weight_hh_l0_reverse"), kHeads), ErrorKind::input,
                     "rnn.weight_hh_l0_reverse is missing");
  EXPECT_OCCAM_ERROR(blocks_of_wide_lstm(good, 7), ErrorKind::input, "7 heads do not divide");
  // Two heads divide the sizes but not the blocks.
  NamedTensors dense = good;
  for (auto& [name, t] : dense)
    if (name == "rnn.weight_hh_l0") t = raw::clone(t), t.data<float>()[kWide - 1] = 0.5f;
  EXPECT_OCCAM_ERROR(blocks_of_wide_lstm(dense, kHeads), ErrorKind::input,
                     "rnn.weight_hh_l0[0,14] is 0.5: a weight outside the blocks of 3 heads");
  for (auto& [name, t] : dense = good)
    if (name == "head_proj.weight") t = raw::clone(t).fill_(1);
  EXPECT_OCCAM_ERROR(blocks_of_wide_lstm(dense, kHeads), ErrorKind::input, "head_proj.weight");
}

TEST(WideLstm, LeavesOtherTensorsAlone) {
  const NamedTensors all = blocks_of_wide_lstm({{"blocks.0.attn.qkv.weight", ones({3, 2})}}, 2);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].first, "blocks.0.attn.qkv.weight");
  EXPECT_EQ(all[0].second.shape(), (Shape{3, 2}));
}

}  // namespace
}  // namespace occam
