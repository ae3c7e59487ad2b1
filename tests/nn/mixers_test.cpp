// Mixers: their ledger (method.md 1.4 of the project's notes; closed forms in nn/mixers/*/README.md), names,
// and replacement in a model.
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/apply.h"
#include "core/grad_mode.h"
#include "core/io/safetensors.h"
#include "nn/mixers/attention/attention.h"
#include "nn/mixers/scan_order.h"
#include "nn/plan.h"
#include "nn/summary.h"
#include "nn/vit/model.h"
#include "nn/vit/taps.h"
#include "tests/core/expect_error.h"
#include "tests/nn/rule.h"

namespace occam {
namespace {

const MixerShape kTiny{192, 3}, kSmall{384, 6}, kBase{768, 12};

TEST(MixerLedger, PublishedParameters) {
  auto params = [](const char* name, const MixerShape& s) {
    return find_mixer(name).ledger(s, 197, {}).params;
  };
  EXPECT_EQ(params("attention", kTiny), 148224);
  EXPECT_EQ(params("attention", kSmall), 591360);
  EXPECT_EQ(params("attention", kBase), 2362368);
  EXPECT_EQ(params("bilstm", kTiny), 298560);
  EXPECT_EQ(params("bilstm", kSmall), 744576);
  EXPECT_EQ(params("bilstm", kBase), 2078976);
  EXPECT_EQ(params("bigru", kSmall), 2 * 384 * 384 + 911 * 384);
  EXPECT_EQ(params("identity", kBase), 0);
}

TEST(MixerLedger, PublishedMultiplyAdds) {
  struct Row {
    MixerShape shape;
    int64_t tokens;
    double attention, bilstm;  // G, three digits after the point
  };
  for (const Row& r :
       {Row{kTiny, 197, 0.044, 0.058}, Row{kTiny, 768, 0.340, 0.226}, Row{kSmall, 197, 0.146, 0.145},
        Row{kBase, 197, 0.524, 0.407}, Row{kBase, 577, 1.873, 1.191}, Row{kBase, 1025, 4.032, 2.116}}) {
    auto giga = [&](const char* name) {
      return std::round(double(find_mixer(name).ledger(r.shape, r.tokens, {}).macs) / 1e6) / 1e3;
    };
    EXPECT_DOUBLE_EQ(giga("attention"), r.attention) << r.shape.dim << " " << r.tokens;
    EXPECT_DOUBLE_EQ(giga("bilstm"), r.bilstm) << r.shape.dim << " " << r.tokens;
  }
  // Exact integers of one row, worked by hand: 4*197*192^2 + 2*197^2*192 and 197*(2*192^2 + 1152*192).
  EXPECT_EQ(find_mixer("attention").ledger(kTiny, 197, {}).macs, 43951488);
  EXPECT_EQ(find_mixer("bilstm").ledger(kTiny, 197, {}).macs, 58097664);
  EXPECT_EQ(find_mixer("bilstm").ledger(kTiny, 197, {}).sequential_depth, 197);
  EXPECT_EQ(find_mixer("attention").ledger(kTiny, 197, {}).sequential_depth, 1);
}

TEST(MixerLedger, PublishedModels) {
  struct Row {
    const char* name;
    double deit, lstm;  // M
  };
  for (const Row& r : {Row{"deit_tiny_patch16_224", 5.72, 7.52}, Row{"deit_small_patch16_224", 22.05, 23.89},
                       Row{"deit_base_patch16_224", 86.57, 83.17}}) {
    VisionTransformer model(vit_shape(r.name));
    auto millions = [&] { return std::round(double(model.parameter_count()) / 1e4) / 100; };
    EXPECT_DOUBLE_EQ(millions(), r.deit);
    for (int64_t i = 0; i < 12; ++i) model.replace_mixer(i, {"bilstm", {}});
    EXPECT_DOUBLE_EQ(millions(), r.lstm);
  }
}

TEST(MixerLedger, ClosedFormsEqualParametersAndPlan) {
  // One token without a place, 1 + 4x4, 2 + 3x5, 1 + 14x14.
  for (const MixerEntry& entry : mixer_table())
    for (const MixerShape& s : {MixerShape{24, 2, 1, 1, 0}, MixerShape{24, 2, 4, 4, 1},
                                MixerShape{192, 3, 3, 5, 2}, MixerShape{768, 12, 14, 14, 1}}) {
      const int64_t t = s.tokens();
      auto mixer = make_mixer(entry.name, s);
      const MixerLedger ledger = entry.ledger(s, t, {});
      EXPECT_EQ(mixer->parameter_count(), ledger.params) << entry.name;
      Plan plan = plan_of(*mixer, {1, t, s.dim});
      EXPECT_EQ(plan.total().params, ledger.params) << entry.name;
      EXPECT_EQ(plan.total().macs, ledger.macs) << entry.name << " t=" << t;
      EXPECT_EQ(plan.total().output, (Shape{1, t, s.dim}));
      const MixerKnob& knob = entry.knob;
      if (!knob.option) continue;
      const MixerOptions sized{{knob.option, std::to_string(knob.first + knob.step)}};
      EXPECT_EQ(make_mixer(entry.name, s, sized)->parameter_count(), entry.ledger(s, t, sized).params)
          << entry.name;
      EXPECT_EQ(plan_of(*make_mixer(entry.name, s, sized), {1, t, s.dim}).total().macs,
                entry.ledger(s, t, sized).macs)
          << entry.name;
    }
}

TEST(MixerShape, AtOtherLengths) {
  const MixerShape tall{24, 2, 3, 12, 1}, none{24, 2};
  auto grid = [](const MixerShape& s) { return std::pair{s.grid_h, s.grid_w}; };
  EXPECT_EQ(grid(at_tokens(tall, 37)), std::pair(int64_t{3}, int64_t{12})) << "its own length";
  EXPECT_EQ(grid(at_tokens(tall, 577)), std::pair(int64_t{24}, int64_t{24}));
  EXPECT_EQ(grid(at_tokens(none, 16)), std::pair(int64_t{4}, int64_t{4}));
  for (int64_t tokens : {0, 1, 3, 576, 578}) EXPECT_FALSE(at_tokens(tall, tokens).has_grid()) << tokens;
  EXPECT_EQ(grid(at_tokens(tall, (1 << 24) + 1)), std::pair(int64_t{4096}, int64_t{4096}));
}

TEST(MixerTable, RefusesUnknownOptions) {
  const MixerShape s{24, 2, 4, 4, 1};
  for (const MixerEntry& entry : mixer_table()) {
    SCOPED_TRACE(entry.name);
    EXPECT_OCCAM_ERROR(entry.make(s, {{"foo", "1"}}), ErrorKind::usage,
                       std::string("options of mixer ") + entry.name);
    EXPECT_OCCAM_ERROR(entry.ledger(s, 17, {{"foo", "1"}}), ErrorKind::usage, "foo");
  }
}

// Others neither cost nor hold anything that depends on the grid.
TEST(MixerTable, WantsAGridWhereItSaysSo) {
  const MixerShape none{24, 2}, grid{24, 2, 4, 4, 1};
  for (const MixerEntry& entry : mixer_table()) {
    SCOPED_TRACE(entry.name);
    if (entry.needs_grid) {
      EXPECT_OCCAM_ERROR(entry.make(none, {}), ErrorKind::usage, "needs a patch grid");
      EXPECT_OCCAM_ERROR(entry.ledger(none, 17, {}), ErrorKind::usage, "needs a patch grid");
      continue;
    }
    const MixerLedger a = entry.ledger(none, 17, {}), b = entry.ledger(grid, 17, {});
    EXPECT_EQ(std::tuple(a.params, a.macs, a.sequential_depth),
              std::tuple(b.params, b.macs, b.sequential_depth));
    EXPECT_EQ(entry.make(none, {})->parameter_count(), a.params);
  }
}

// A step beyond the last is refused, so the range of the option and that of the knob are one.
TEST(MixerTable, KnobsStayWithinTheirOptions) {
  const MixerShape s{24, 2, 4, 4, 1};
  for (const MixerEntry& entry : mixer_table()) {
    const MixerKnob& k = entry.knob;
    if (!k.option) continue;
    SCOPED_TRACE(entry.name);
    EXPECT_EQ((k.last - k.first) % k.step, 0);
    for (int64_t n : {k.first, k.last}) EXPECT_NO_THROW(entry.ledger(s, 17, {{k.option, std::to_string(n)}}));
    EXPECT_OCCAM_ERROR(entry.ledger(s, 17, {{k.option, std::to_string(k.last + k.step)}}), ErrorKind::usage,
                       k.option);
  }
}

// DeiT-Tiny at 197 tokens: attention has 148,224 parameters and 43,951,488 multiply-adds. A bilstm of hidden
// 24 has 135,360 parameters, of 32 156,672; of 48 43,573,248 multiply-adds, of 56 more.
TEST(Match, IsTheLargestThatCostsNoMore) {
  const MixerShape s{192, 3, 14, 14, 1};
  auto hidden = [&](const char* match, int64_t tokens = 0) {
    return sized_options("bilstm", s, {{"match", match}}, tokens).at("hidden");
  };
  EXPECT_EQ(hidden("params"), "24");
  EXPECT_EQ(hidden("macs"), "48");
  EXPECT_EQ(hidden("params", 4097), "24");
  EXPECT_NE(hidden("macs", 4097), "48");
  // Another length is another grid.
  EXPECT_EQ(sized_options("bilstm2d", s, {{"match", "macs"}}, 577),
            sized_options("bilstm2d", {192, 3, 24, 24, 1}, {{"match", "macs"}}));
  for (const MixerEntry& entry : mixer_table()) {
    if (!entry.knob.option) continue;
    for (const char* match : {"params", "macs"}) {
      auto [options, refusal] = size_options(entry.name, s, {{"match", match}});
      if (!refusal.empty()) {  // mamba2 has more parameters than attention whatever its state
        EXPECT_NE(refusal.find("already"), std::string::npos) << refusal;
        continue;
      }
      auto cost = [&](const char* name, const MixerOptions& o) {
        const MixerLedger l = find_mixer(name).ledger(s, s.tokens(), o);
        return std::string(match) == "params" ? l.params : l.macs;
      };
      const int64_t limit = cost("attention", {});
      EXPECT_LE(cost(entry.name, options), limit) << entry.name;
      std::string& knob = options.at(entry.knob.option);
      if (std::stoll(knob) + entry.knob.step > entry.knob.last) continue;
      knob = std::to_string(std::stoll(knob) + entry.knob.step);
      EXPECT_GT(cost(entry.name, options), limit) << entry.name;
    }
  }
}

TEST(Match, IsResolvedInAModel) {
  VisionTransformer model(vit_shape("deit_tiny_patch16_224"));
  model.replace_mixer(3, {"bilstm", {{"match", "params"}, {"scan", "snake"}}});
  EXPECT_EQ(model.mixer_choice(3).options, (MixerOptions{{"hidden", "24"}, {"scan", "snake"}}));
  EXPECT_EQ(model.block(3).mixer().parameter_count(), 135360);
}

TEST(Match, Refusals) {
  const MixerShape s{192, 3, 14, 14, 1};
  auto refuse = [&](const char* name, const MixerOptions& options, const MixerShape& shape,
                    const char* text) {
    EXPECT_OCCAM_ERROR(sized_options(name, shape, options), ErrorKind::usage, text);
  };
  refuse("pool", {{"match", "params"}}, s, "mixer pool has nothing that a match could size");
  refuse("bilstm", {{"match", "size"}}, s, "expected params or macs");
  refuse("bilstm", {{"match", "params"}, {"hiden", "8"}}, s, "hiden");
  refuse("bilstm", {{"match", "params"}, {"hidden", "8"}}, s, "either hidden or match");
  refuse("bilstm", {{"match", "macs"}}, {192, 3}, "needs a number of tokens");
  refuse("bilstm", {{"match", "params"}}, {16, 16, 4, 4, 1}, "with hidden = 8 has");
}

TEST(ScanOrder, Orders) {
  const MixerShape s{4, 1, 2, 3, 1};  // patches 1 2 3 / 4 5 6
  using Order = std::vector<int64_t>;
  EXPECT_EQ(scan_order(s, {}), (Order{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(scan_order(s, {"column", "first"}), (Order{0, 1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(scan_order(s, {"snake", "middle"}), (Order{1, 2, 3, 0, 6, 5, 4}));
  EXPECT_EQ(scan_order(s, {"row", "last"}), (Order{1, 2, 3, 4, 5, 6, 0}));
  const MixerShape distilled{4, 1, 1, 3, 2};
  EXPECT_EQ(scan_order(distilled, {"row", "middle"}), (Order{2, 0, 1, 3, 4}));
  EXPECT_OCCAM_ERROR(scan_order({4, 1}, {"snake", "first"}), ErrorKind::usage, "patch grid");
}

TEST(ScanOrder, ArrangeAndRestore) {
  const MixerShape s{2, 1, 2, 3, 1};
  const Tensor x = rule::tensor("scan/x", {2, 7, 2}, 0, 1);
  EXPECT_EQ(TokenOrder(s, {}).arrange(x).data<float>(), x.data<float>()) << "the default copies nothing";
  TokenOrder order(s, {"snake", "middle"});
  EXPECT_EQ(order.restore(order.arrange(x)).to_vector<float>(), x.to_vector<float>());
  EXPECT_NE(order.arrange(x).to_vector<float>(), x.to_vector<float>());
  EXPECT_OCCAM_ERROR(order.arrange(ones({1, 8, 2})), ErrorKind::shape, "8 tokens");
}

// A mixer with a scan order is the mixer on tokens in that order.
TEST(ScanOrder, InTheSkeleton) {
  const MixerShape s{12, 2, 2, 3, 1};
  auto plain = make_mixer("bilstm", s), snake = make_mixer("bilstm", s, {{"scan", "snake"}, {"cls", "last"}});
  for (TokenMixer* m : {plain.get(), snake.get()}) rule::fill(*m, "scan");
  const Tensor x = rule::tensor("scan/x12", {2, 7, 12}, 0, 1);
  NoGrad no_grad;
  TokenOrder order(s, {"snake", "last"});
  EXPECT_EQ(snake->heads(x).to_vector<float>(),
            order.restore(plain->heads(order.arrange(x))).to_vector<float>());
  EXPECT_OCCAM_ERROR(make_mixer("bilstm", {12, 2}, {{"scan", "column"}}), ErrorKind::usage, "patch grid");
  EXPECT_OCCAM_ERROR(make_mixer("bilstm", s, {{"scan", "spiral"}}), ErrorKind::usage, "snake");
}

TEST(Plan, DeitTinyByHand) {
  VisionTransformer model(vit_shape("deit_tiny_patch16_224"));
  const Plan plan = plan_of(model, model.shape().image());
  EXPECT_EQ(plan.at("patch_embed").macs, int64_t{196} * 768 * 192);
  EXPECT_EQ(plan.at("blocks.3.attn").macs, 43951488);
  EXPECT_EQ(plan.at("blocks.3.mlp").macs, int64_t{2} * 197 * 192 * 768);
  EXPECT_EQ(plan.at("head").macs, 192 * 1000);
  EXPECT_EQ(plan.total().macs, 196 * 768 * 192 + int64_t{12} * (43951488 + 2 * 197 * 192 * 768) + 192000);
  EXPECT_EQ(plan.total().params, 5717416);
  EXPECT_EQ(plan.total().output, (Shape{1, 1000}));
  const std::string text = summary(plan, 2);
  EXPECT_NE(text.find("5,717,416"), std::string::npos) << text;
  EXPECT_NE(text.find("attn Attention"), std::string::npos) << text;
  EXPECT_EQ(text.find("qkv"), std::string::npos) << "depth 3 is left out:\n" << text;
}

std::vector<std::string> block_names(VisionTransformer& model, int64_t i) {
  std::vector<std::string> names;
  for (const auto& [name, p] : model.block(i).named_parameters()) names.push_back(name);
  return names;
}

std::unique_ptr<VisionTransformer> small_model() {
  ModelConfig config{.name = "vit"};
  config.image_size = 16, config.patch = 4, config.dim = 24, config.depth = 3, config.heads = 2,
  config.classes = 5;
  auto model = make_model(config, 3);
  model->eval();
  return model;
}

TEST(Replace, BilstmKeepsTheProjection) {
  auto model = small_model();
  const auto proj = model->block(1).mixer().proj()->weight().master().to_vector<float>();
  model->replace_mixer(1, {"bilstm", {}}, 9);
  EXPECT_EQ(block_names(*model, 1),
            (std::vector<std::string>{"norm1.weight", "norm1.bias", "attn.pre.weight", "attn.pre.bias",
                                      "attn.rnn.weight_ih", "attn.rnn.weight_hh", "attn.rnn.bias_ih",
                                      "attn.rnn.bias_hh", "attn.head_proj.weight", "attn.head_proj.bias",
                                      "attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias",
                                      "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"}));
  EXPECT_EQ(model->block(1).mixer().proj()->weight().master().to_vector<float>(), proj);
  EXPECT_FALSE(model->block(1).mixer().training()) << "a new mixer takes the model's mode";
  NoGrad no_grad;
  const Tensor y = (*model)(ones({2, 3, 16, 16}));
  EXPECT_EQ(y.shape(), (Shape{2, 5}));
  for (float v : y.to_vector<float>()) EXPECT_TRUE(std::isfinite(v));
}

TEST(Replace, FreshAttentionHasNewQkvAndTheOldProjection) {
  auto model = small_model();
  auto values = [&](const char* path) {
    return model->block(2).mixer().find(path)->parameters()[0].second->master().to_vector<float>();
  };
  const auto qkv = values("qkv"), proj = values("proj");
  model->replace_mixer(2, {"fresh_attention", {}}, 9);
  EXPECT_NE(values("qkv"), qkv);
  EXPECT_EQ(values("proj"), proj);
}

TEST(Replace, IdentityRemovesNormAndBranch) {
  auto model = small_model();
  model->replace_mixer(0, {"identity", {}}, 9);
  EXPECT_EQ(block_names(*model, 0),
            (std::vector<std::string>{"norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias",
                                      "mlp.fc2.weight", "mlp.fc2.bias"}));
  EXPECT_FALSE(model->block(0).mixer().has_tap());
  NoGrad no_grad;
  // block = x + mlp(norm2(x)): a token's output depends on that token alone.
  Tensor x = zeros({1, 3, 24}), y = ones({1, 3, 24});
  raw::slice(y, 1, 0, 1).copy_(raw::slice(x, 1, 0, 1));
  const auto a = model->block(0)(x).to_vector<float>(), b = model->block(0)(y).to_vector<float>();
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 24, b.begin()));
  // And back: norm1 is new and gets values.
  model->replace_mixer(0, {"bilstm", {}}, 9);
  EXPECT_EQ(model->block(0).norm1()->parameters()[0].second->master().to_vector<float>(),
            std::vector<float>(24, 1));
}

TEST(Replace, TapsSeeInputAndHeads) {
  auto model = small_model();
  model->replace_mixer(1, {"bilstm", {}}, 9);
  model->replace_mixer(2, {"identity", {}}, 9);
  NoGrad no_grad;
  MixerTaps taps(*model, {0, 1});
  EXPECT_OCCAM_ERROR(taps.heads(0), ErrorKind::internal, "no forward has run");
  (*model)(ones({1, 3, 16, 16}));
  for (int64_t i : {0, 1}) {
    EXPECT_EQ(taps.heads(i).shape(), (Shape{1, 17, 24}));
    EXPECT_EQ(taps.heads(i).to_vector<float>(),
              model->block(i).mixer().heads(taps.input(i)).to_vector<float>());
  }
  EXPECT_OCCAM_ERROR(MixerTaps(*model, {2}), ErrorKind::usage, "no head outputs");
}

/// Multiply-adds that the ops of a forward report themselves.
class CountedProducts : public OpObserver {
 public:
  void after(const OpEntry& entry, In, const Outs&, const Cost& cost) override {
    if (entry.info.bound == Bound::compute) flops += cost.flops;
  }
  double flops = 0;
};

TEST(Plan, AgreesWithTheCostsOfTheOpsThatRan) {
  auto model = small_model();
  model->replace_mixer(1, {"bilstm", {{"hidden", "5"}}}, 9);
  model->replace_mixer(2, {"identity", {}}, 9);
  NoGrad no_grad;
  CountedProducts counted;
  (*model)(ones(model->shape().image()));
  // Ops also count what the ledger leaves out (biases, GELU, softmax): a few percent at these widths.
  const double macs = double(plan_of(*model, model->shape().image()).total().macs);
  EXPECT_GE(counted.flops, 2 * macs);
  EXPECT_LE(counted.flops, 2 * macs * 1.25);
}

TEST(Replace, AttentionShowsQkv) {
  auto model = small_model();
  auto& attention = dynamic_cast<Attention&>(model->block(0).mixer());
  Shape seen;
  attention.on_qkv([&](const Tensor& qkv) { seen = qkv.shape(); });
  NoGrad no_grad;
  (*model)(ones({2, 3, 16, 16}));
  EXPECT_EQ(seen, (Shape{2, 17, 3, 2, 12}));
}

/// The mixer against golden outputs that PyTorch made from one small network a head.
void expect_golden(const char* kind) {
  const std::string name = kind;
  const Safetensors golden(OCCAM_SOURCE_DIR "/tests/data/golden/" + name + ".safetensors");
  struct Case {
    const char *name, *hidden;
    MixerShape shape;
  };
  for (const Case& c : {Case{"_12_3_4", "0", {12, 3}}, Case{"_12_2_5", "5", {12, 2}}}) {
    auto mixer = make_mixer(name, c.shape, {{"hidden", c.hidden}});
    rule::fill(*mixer, name + c.name);
    NoGrad no_grad;
    const Tensor x = rule::tensor(name + c.name + "/x", {2, 7, 12}, 0, 1.5);
    auto expect_near = [&](const Tensor& got, const std::string& what) {
      const auto g = got.to_vector<float>(), e = golden.get(name + c.name + what).to_vector<float>();
      ASSERT_EQ(g.size(), e.size());
      for (size_t i = 0; i < e.size(); ++i)
        ASSERT_NEAR(g[i], e[i], 1e-5) << name << c.name << what << " element " << i;
    };
    expect_near(mixer->heads(x), ".heads");
    expect_near((*mixer)(x), ".output");
  }
}

// tests/tools/rnn_heads.py.
TEST(Bilstm, EqualsSmallLstmsOfPytorch) { expect_golden("bilstm"); }
TEST(Bigru, EqualsSmallGrusOfPytorch) { expect_golden("bigru"); }

TEST(Replace, WrongNamesOptionsAndBlocks) {
  auto model = small_model();
  EXPECT_OCCAM_ERROR(model->replace_mixer(0, {"bilstn", {}}), ErrorKind::usage, "bilstm");
  EXPECT_OCCAM_ERROR(model->replace_mixer(3, {"bilstm", {}}), ErrorKind::usage, "blocks 0 to 2");
  EXPECT_OCCAM_ERROR(model->replace_mixer(0, {"bilstm", {{"hiden", "3"}}}), ErrorKind::usage, "hidden");
  EXPECT_OCCAM_ERROR(model->replace_mixer(0, {"identity", {{"hidden", "3"}}}), ErrorKind::usage,
                     "mixer identity");
  EXPECT_OCCAM_ERROR(model->replace_mixer(0, {"bilstm", {{"hidden", "x"}}}), ErrorKind::usage, "hidden");
}

}  // namespace
}  // namespace occam
