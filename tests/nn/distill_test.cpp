// Planning of runs, what each stage trains, and the losses.
#include "nn/distill/distill.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <set>

#include "autograd/engine.h"
#include "core/grad_mode.h"
#include "nn/optim/optimizer.h"
#include "nn/state.h"
#include "ops/cross_entropy/op.h"
#include "ops/distance/op.h"
#include "tests/core/expect_error.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace {

ModelConfig teacher_config() {
  ModelConfig c{.name = "vit"};
  c.image_size = 16, c.patch = 4, c.dim = 24, c.depth = 4, c.heads = 2, c.classes = 5;
  return c;
}

/// Layers by entropy 0.6, 0.2, 0.9, 0.4: sparsest first 1 3 0 2.
LayerRanking ranking() { return {"entropy", {1, 3, 0, 2}, {0.6, 0.2, 0.9, 0.4}}; }

BlockChoice list(std::vector<int64_t> blocks) {
  BlockChoice c;
  c.list = std::move(blocks);
  return c;
}
BlockChoice sparsest(int64_t k) {
  BlockChoice c;
  c.sparsest = k;
  return c;
}
BlockChoice densest(int64_t k) {
  BlockChoice c;
  c.densest = k;
  return c;
}

std::vector<DistillRun> plan(const DistillConfig& config, uint64_t seed = 0) {
  return plan_runs(config, ranking(), make_model(teacher_config())->shape(), seed);
}

TEST(PlanRuns, BlocksByRankPlaceAndSeed) {
  DistillConfig c;
  c.controls.clear();
  auto blocks = [&](auto set, uint64_t seed = 0) {
    BlockChoice choice;
    set(choice);
    c.runs = {{.blocks = choice}};
    return plan(c, seed).at(0).blocks;
  };
  using Blocks = std::vector<int64_t>;
  EXPECT_EQ(blocks([](BlockChoice& b) { b.sparsest = 2; }), (Blocks{1, 3}));
  EXPECT_EQ(blocks([](BlockChoice& b) { b.densest = 2; }), (Blocks{0, 2}));
  EXPECT_EQ(blocks([](BlockChoice& b) { b.first = 3; }), (Blocks{0, 1, 2}));
  EXPECT_EQ(blocks([](BlockChoice& b) { b.last = 2; }), (Blocks{2, 3}));
  EXPECT_EQ(blocks([](BlockChoice& b) { b.list = Blocks{3, 0}; }), (Blocks{0, 3}));
  auto random = [](BlockChoice& b) { b.random = 2; };
  EXPECT_EQ(blocks(random, 5), blocks(random, 5));
  std::set<Blocks> drawn;
  for (uint64_t seed = 0; seed < 20; ++seed) drawn.insert(blocks(random, seed));
  EXPECT_GT(drawn.size(), 2u);
}

TEST(PlanRuns, ControlsForEverySetOnceAndNoRunTwice) {
  DistillConfig c;
  c.runs = {{.blocks = sparsest(2)},
            {.blocks = list({3, 1})},  // the same blocks
            {.blocks = densest(2)},
            {.blocks = sparsest(2), .options = {{"hidden", "5"}}}};
  const std::vector<DistillRun> runs = plan(c);
  std::vector<std::string> names;
  for (const DistillRun& r : runs) names.push_back(r.name);
  EXPECT_EQ(names, (std::vector<std::string>{"bilstm-1-3", "bilstm-0-2", "bilstm-1-3-variant2",
                                             "identity-1-3", "identity-0-2", "no_op"}));
  EXPECT_DOUBLE_EQ(runs[0].mean_sparsity, 0.3);
  EXPECT_DOUBLE_EQ(runs[1].mean_sparsity, 0.75);
  EXPECT_TRUE(std::isnan(runs[5].mean_sparsity));
  EXPECT_TRUE(runs[5].no_op() && runs[5].blocks.empty());
}

TEST(PlanRuns, WhatCannotBeRun) {
  DistillConfig c;
  auto refused = [&](BlockChoice blocks, const std::string& with, MixerOptions options,
                     const std::string& text) {
    c.runs = {{std::move(blocks), with, std::move(options)}};
    EXPECT_OCCAM_ERROR(plan(c), ErrorKind::usage, text);
  };
  refused(sparsest(5), "bilstm", {}, "sparsest 5 blocks are asked for, 4 can be chosen from");
  refused(list({4}), "bilstm", {}, "block 4; the teacher's go from 0 to 3");
  refused(list({1, 1}), "bilstm", {}, "a block is listed twice");
  refused(list({}), "bilstm", {}, "blocks is an empty list");
  refused(list({1}), "bilstmm", {}, "bilstm");
  refused(list({1}), "bilstm", {{"hiden", "3"}}, "hidden");
  c.runs.clear(), c.controls.clear();
  EXPECT_OCCAM_ERROR(plan(c), ErrorKind::usage, "distill.runs is empty");
}

TEST(Steps, AreEqualForEveryRun) {
  DistillConfig c;
  c.stage1.steps = 7;
  c.stage2.epochs = 1.5;
  const StageSteps with = steps_of(c, true, 10, 10), without = steps_of(c, false, 10, 10);
  EXPECT_EQ(with.stage1, 7);
  EXPECT_EQ(with.stage2, 15);
  EXPECT_EQ(without.stage1, 0);
  EXPECT_EQ(without.stage2, 22);
}

TEST(ReadRanking, OfAProfileAndOfWhatIsNone) {
  TempFolder folder;
  const auto path = folder / "summary.json";
  auto write = [&](const std::string& text) { std::ofstream(path) << text; };
  auto layer = [](double v) {
    const std::string n = std::to_string(v);
    return R"({"patch": {"entropy": )" + n + R"(, "x": null}, "mean": {"entropy": 1, "x": )" + n + "}}";
  };
  write(R"({"layers": [)" + layer(0.5) + ", null, " + layer(0.25) +
        R"(], "ranking": {"entropy": [2, 0], "x": [2, 0], "twice": [0, 0], "far": [3]}})");
  const LayerRanking r = read_ranking(path, "entropy", 3);
  EXPECT_EQ(r.order, (std::vector<int64_t>{2, 0}));
  EXPECT_EQ(r.values[0], 0.5);
  EXPECT_TRUE(std::isnan(r.values[1]));
  EXPECT_EQ(read_ranking(path, "x", 3).values[2], 0.25) << "the mean stands in for what patches lack";
  EXPECT_OCCAM_ERROR(read_ranking(path, "entropy", 4), ErrorKind::input, "3 layers, the teacher has 4");
  EXPECT_OCCAM_ERROR(read_ranking(path, "gini", 3), ErrorKind::input, "ranking.gini");
  for (const char* text : {"[]", "3", R"({"ranking": {"entropy": [0]}})",
                           R"({"layers": [{"patch": {"entropy": 1}, "mean": {"entropy": 1}}],
                               "ranking": {"entropy": ["a"]}})"}) {
    write(text);
    EXPECT_OCCAM_ERROR(read_ranking(path, "entropy", 1), ErrorKind::input, "profile_sparsity");
  }
  for (const char* order : {"[0, 0]", "[1]", "[-1]"}) {
    write(R"({"layers": [{"patch": {"entropy": 1}, "mean": {"entropy": 1}}], "ranking": {"entropy": )" +
          std::string(order) + "}}");
    EXPECT_OCCAM_ERROR(read_ranking(path, "entropy", 1), ErrorKind::input, "twice or out of range");
  }
}

class DistillStages : public testing::Test {
 protected:
  DistillStages() : teacher_(make_model(teacher_config(), 3)) {
    config_.label_weight = 0.5;
    run_ = {.name = "r", .blocks = {1, 3}, .mixer = {"bilstm", {}}};
    Rng rng(1, "images");
    batch_.images = rand_normal({6, 3, 16, 16}, 0, 1, rng);
    batch_.labels = zeros({6}, {DType::i64});
    for (int64_t i = 0; i < 6; ++i) batch_.labels.data<int64_t>()[i] = i % 5;
    batch_.indices.resize(6);
  }
  /// The run's student. Its teacher has the weights of teacher_ (the same settings and seed).
  void make(const std::string& mixer) {
    run_.mixer.with = mixer;
    if (mixer == kNoOp) run_.blocks.clear();
    student_ = make_student(teacher_config(), run_, 3, kCPU, DType::f32);
    student_->train();
  }
  static std::map<std::string, std::vector<float>> values(VisionTransformer& model) {
    std::map<std::string, std::vector<float>> all;
    for (const auto& [name, p] : model.named_parameters()) all[name] = p->master().to_vector<float>();
    return all;
  }
  /// Some updates of a stage; the losses before each.
  std::vector<double> train(int stage, int steps, double lr = 0.01) {
    Distillation distillation(config_, run_, *teacher_, *student_);
    distillation.enter(stage);
    OptimConfig o;
    o.lr = lr;
    Optimizer optimizer(*student_, o);
    std::vector<double> losses;
    for (int i = 0; i < steps; ++i) {
      student_->zero_grad();
      Tensor loss = distillation.loss(batch_);
      losses.push_back(loss.item());
      backward(loss);
      optimizer.step(lr);
    }
    return losses;
  }

  DistillConfig config_;
  DistillRun run_;
  std::unique_ptr<VisionTransformer> teacher_, student_;
  Batch batch_;
};

TEST_F(DistillStages, SurgeryKeepsAllThatIsNotReplaced) {
  make("bilstm");
  auto taught = values(*teacher_), kept = values(*student_);
  int shared = 0;
  for (const auto& [name, value] : kept)
    if (taught.contains(name)) {
      EXPECT_TRUE(taught[name] == value) << name;
      ++shared;
    }
  EXPECT_TRUE(kept.contains("blocks.1.attn.rnn.weight_ih"));
  EXPECT_FALSE(kept.contains("blocks.1.attn.qkv.weight"));
  EXPECT_TRUE(taught.at("blocks.1.attn.proj.weight") == kept.at("blocks.1.attn.proj.weight"));
  EXPECT_GT(shared, 30);
  make("identity");
  EXPECT_FALSE(values(*student_).contains("blocks.1.attn.proj.weight"));
  EXPECT_FALSE(values(*student_).contains("blocks.1.norm1.weight"));
  EXPECT_FALSE(has_taps(*student_, run_));
  make(kNoOp);
  EXPECT_TRUE(values(*student_) == taught);
  EXPECT_FALSE(has_taps(*student_, run_));
}

TEST_F(DistillStages, Stage1TrainsNewModulesAloneAndNearsTheTeacher) {
  for (const char* match : {"mse", "cosine"})
    for (const char* input : {"student", "teacher"}) {
      SCOPED_TRACE(std::string(match) + " " + input);
      config_.match = match, config_.input = input, config_.label_weight = 0;
      make("bilstm");
      ASSERT_TRUE(has_taps(*student_, run_));
      auto taught = values(*teacher_), before = values(*student_);
      const std::vector<double> losses = train(1, 30);
      EXPECT_LT(losses.back(), 0.7 * losses.front());
      auto after = values(*student_);
      for (const auto& [name, value] : before) {
        const bool is_new = (name.starts_with("blocks.1.attn.") || name.starts_with("blocks.3.attn.")) &&
                            name.find(".proj.") == std::string::npos;
        EXPECT_EQ(value != after[name], is_new) << name;
      }
      EXPECT_TRUE(values(*teacher_) == taught);
    }
}

TEST_F(DistillStages, Stage2TrainsEverythingButTheTeacher) {
  make("bilstm");
  auto taught = values(*teacher_), before = values(*student_);
  train(2, 2);
  for (const auto& [name, value] : values(*student_)) EXPECT_NE(value, before[name]) << name;
  EXPECT_TRUE(values(*teacher_) == taught);
  for (const auto& [name, p] : teacher_->named_parameters()) EXPECT_FALSE(p->grad()) << name;
}

TEST_F(DistillStages, TheLossIsTheSumOfItsTerms) {
  make("bilstm");
  config_.match_weight = 3, config_.label_weight = 0.5, config_.kd_weight = 0.25;
  config_.stage1.label_smoothing = 0;
  Distillation distillation(config_, run_, *teacher_, *student_);
  distillation.enter(1);
  const double loss = distillation.loss(batch_).item();
  NoGrad no_grad;
  MixerTaps taught(*teacher_, run_.blocks), learnt(*student_, run_.blocks);
  Tensor target = (*teacher_)(batch_.images), scores = (*student_)(batch_.images);
  double match = 0;
  for (int64_t b : run_.blocks) match += mse(learnt.heads(b), taught.heads(b)).item();
  const double expected = 3 * match + 0.5 * cross_entropy(scores, batch_.labels).item() +
                          0.25 * kl_div(scores, target, config_.kd_temperature).item();
  // A dozen f32 operations on terms of this size.
  EXPECT_NEAR(loss, expected, 12 * 0x1p-24 * std::abs(expected) * 4);
}

TEST_F(DistillStages, AStudentThatIsItsTeacherHasNoMatchError) {
  make("attention");  // the same mixer with new weights, then the teacher's
  for (int64_t b : run_.blocks)
    load_state_dict(student_->block(b).mixer(), state_dict(teacher_->block(b).mixer()));
  Distillation distillation(config_, run_, *teacher_, *student_);
  config_.label_weight = 0;
  distillation.enter(1);
  EXPECT_EQ(distillation.loss(batch_).item(), 0);
}

}  // namespace
}  // namespace occam
