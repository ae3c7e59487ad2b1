// Rates, the memory report, the profile of a step, and blocks that are recomputed.
#include <gtest/gtest.h>

#include "autograd/engine.h"
#include "autograd/recompute.h"
#include "autograd/saved_memory.h"
#include "core/allocator.h"
#include "core/grad_mode.h"
#include "core/rng.h"
#include "nn/prof/ceilings.h"
#include "nn/prof/step_profile.h"
#include "nn/train/loop.h"
#include "nn/train/loss.h"
#include "nn/vit/model.h"
#include "nn/vit/taps.h"
#include "ops/elementwise/op.h"
#include "ops/linear/op.h"
#include "ops/slice/op.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace {

ModelConfig small(const std::string& recompute = "none", double dropout = 0.1) {
  ModelConfig c{.name = "vit"};
  c.image_size = 16, c.patch = 4, c.dim = 32, c.depth = 4, c.heads = 2, c.classes = 5, c.channels = 3;
  c.drop_path = 0.3, c.dropout = dropout;
  c.recompute = recompute;
  return c;
}

Device gpu_or_cpu() { return cuda_available() ? cuda_device() : kCPU; }

Batch images_and_labels(const VisionTransformer& model, int64_t size) {
  Rng rng(0, "data");
  Batch batch;
  batch.images = raw::to(rand_normal(model.shape().image().with(0, size), 0, 1, rng), model.device());
  std::vector<int64_t> labels(static_cast<size_t>(size));
  for (int64_t& l : labels) l = rng.below(5);
  batch.labels = raw::to(from_vector(labels), model.device());
  batch.indices.resize(size_t(size));
  return batch;
}

struct Training {
  std::unique_ptr<VisionTransformer> model;
  Batch batch;
  std::unique_ptr<TrainLoop> loop;
  explicit Training(const ModelConfig& config, DType dtype = DType::f32) : model(make_model(config, 3)) {
    model->to(gpu_or_cpu());
    model->set_compute_dtype(dtype);
    batch = images_and_labels(*model, 8);
    LoopConfig c;
    c.batch = 8, c.accumulate = 2;
    loop = std::make_unique<TrainLoop>(*model, c, 1000, 100, 1);
  }
  void step() {
    loop->run(batch, [&](const Batch& part) {
      return label_loss(model->logits(raw::to(part.images, model->compute_dtype())), part, 0.1);
    });
  }
  std::vector<std::vector<double>> weights() const {
    std::vector<std::vector<double>> out;
    for (auto& [name, p] : model->named_parameters()) out.push_back(p->master().to_vector<double>());
    return out;
  }
};

TEST(RecomputedBlocks, TrainToTheSameBits) {
  for (auto [dtype, dropout] : {std::pair{DType::f32, 0.1}, {DType::bf16, 0.1}, {DType::bf16, 0.0}}) {
    auto trained = [dtype, dropout](const std::string& recompute) {
      Training t(small(recompute, dropout), dtype);
      for (int i = 0; i < 3; ++i) t.step();
      return t.weights();
    };
    const auto plain = trained("none");
    EXPECT_TRUE(trained("blocks") == plain) << name_of(dtype);
    EXPECT_TRUE(trained("mlps") == plain) << name_of(dtype);
  }
}

TEST(RecomputedBlocks, NeedLessMemory) {
  auto peak = [](const std::string& recompute) {
    Training t(small(recompute, 0));
    t.step();
    return measure_memory(*t.model, 0, [&] { t.step(); });
  };
  const MemoryReport plain = peak("none"), recomputed = peak("blocks"), mlps = peak("mlps");
  EXPECT_LT(mlps.saved, plain.saved * 3 / 4);
  EXPECT_LT(2 * recomputed.saved, plain.saved);
  EXPECT_LT(recomputed.peak - recomputed.at_peak.before, (plain.peak - plain.at_peak.before) * 2 / 3);
}

TEST(RecomputedBlocks, ThatAreTappedAreNot) {
  auto gradients = [](const std::string& recompute) {
    Training t(small(recompute));
    MixerTaps taps(*t.model, {2});
    op_random::seed(1);
    op_random::begin_step(t.model->device());
    t.model->logits(t.batch.images);
    const Tensor& heads = taps.heads(2);
    backward(heads, ones(heads.shape(), options_of(heads)));
    std::vector<std::vector<double>> out;
    for (auto& [name, p] : t.model->named_parameters())
      if (p->grad()) out.push_back(p->grad().to_vector<double>());
    return out;
  };
  const auto plain = gradients("none");
  EXPECT_GT(plain.size(), 20u);
  EXPECT_TRUE(gradients("blocks") == plain);
}

TEST(SavedBytes, CountsEachBlockOnce) {
  Tensor w = full({4, 8}, 1), x = full({16, 8}, 1);
  set_requires_grad(w, true);
  set_requires_grad(x, true);
  Tensor y = linear(x, w), z = linear(slice(x, 0, 0, 4), w);
  const int64_t all = saved_bytes(std::vector{y, z});
  EXPECT_EQ(all, 4 * (16 * 8) + 4 * (4 * 8)) << "x whole, once, and w";
  EXPECT_EQ(saved_bytes(std::vector{y, z}, {w.impl().storage.get()}), 4 * (16 * 8));
}

TEST(Memory, TheReportAddsUp) {
  Training t(small());
  t.step();
  OptimConfig adamw, sgd;
  sgd.name = "sgd";
  const int64_t weights = 4 * t.model->parameter_count();
  EXPECT_EQ(optimizer_bytes(*t.model, adamw, false), 2 * weights);
  EXPECT_EQ(optimizer_bytes(*t.model, sgd, true), 2 * weights);
  const MemoryReport r = measure_memory(*t.model, 2 * weights, [&] { t.step(); });
  EXPECT_EQ(r.parameters, weights);
  EXPECT_EQ(r.gradients, weights);
  EXPECT_GT(r.saved, 0);
  EXPECT_GE(r.peak, r.lower_bound());
  Table all = r.largest(1000);
  double shown = 0;
  for (const auto& row : all.rows) shown += std::stod(row[3].exact) * 1e6;
  EXPECT_NEAR(shown, double(r.peak), 1) << "the table leaves nothing out";
  EXPECT_EQ(r.largest(3).rows.size(), 5u);
  EXPECT_NE(r.summary().find("saved for backward"), std::string::npos);
}

TEST(StepProfile, RecordsAnOrdinaryRun) {
  TempFolder folder;
  std::vector<std::vector<double>> expected;
  {
    Training alone(small());
    for (int i = 0; i < 1 + 1 + 2 + 2; ++i) alone.step();
    expected = alone.weights();
  }
  Training watched(small());
  watched.loop->set_capture(false);
  StepProfile profile(*watched.model, 0, 2, 1);
  int steps = 0;
  for (; !profile.done(); ++steps) profile.run([&] { watched.step(); });
  EXPECT_EQ(steps, 1 + 1 + 2 + 2);
  EXPECT_EQ(profile.recorded(), 2);
  EXPECT_TRUE(watched.weights() == expected) << "being watched changes nothing";
  profile.run([&] { ++steps; });
  EXPECT_EQ(steps, 7);
  profile.write(folder.path());
  const std::string text = read_bytes(folder / "profile.md");
  for (const char* part :
       {"## By op", "## By place", "## Memory", "| linear | backward | blocks.\\*.attn.qkv | 8 |"})
    EXPECT_NE(text.find(part), std::string::npos) << part;
  EXPECT_GT(std::filesystem::file_size(folder / "trace.json"), 1000u);
  // Forward products of the step, as the plan counts them; ops add norms, activations and the like.
  double flops = 0;
  for (const auto& row : profile.profiler().rows(Profiler::By::op))
    if (row.name == "linear" || row.name == "mlp" || row.name == "attention") flops += row.work.flops;
  const double products = 8 * train_flops_per_image(*watched.model, watched.model->shape().image());
  EXPECT_GT(flops, 0.98 * products) << "but for the images, which want no gradient";
  EXPECT_LT(flops, 1.15 * products);
}

TEST(Ceilings, AreMeasuredOnceAndPlausible) {
  const DeviceCeilings c = measured_ceilings(gpu_or_cpu(), DType::bf16);
  EXPECT_GT(c.flops, 1e8);
  EXPECT_GT(c.bytes, 1e8);
  EXPECT_EQ(measured_ceilings(gpu_or_cpu(), DType::bf16).flops, c.flops);
}

TEST(Ceilings, DatasheetsGoByTheWholeName) {
  EXPECT_EQ(datasheet_flops("NVIDIA H100 80GB HBM3", DType::bf16, false), 989e12);
  EXPECT_EQ(datasheet_flops("NVIDIA H100 PCIe", DType::bf16, false), 756e12);
  EXPECT_EQ(datasheet_flops("NVIDIA A100-SXM4-80GB", DType::f32, true), 156e12);
  EXPECT_EQ(datasheet_flops("NVIDIA A100-SXM4-80GB", DType::f32, false), 19.5e12);
  EXPECT_EQ(datasheet_flops("NVIDIA L40", DType::bf16, false), 0) << "no L4";
  EXPECT_EQ(datasheet_flops("cpu", DType::f32, false), 0);
}

TEST(Ceilings, DeitSmallTakesTwentyEightGflopsAnImage) {
  ModelConfig c{.name = "deit_small_patch16_224"};
  VisionTransformer model(vit_shape(c.name));
  // 4.6 G multiply-adds (Touvron et al., table 5), times two, times three.
  EXPECT_NEAR(train_flops_per_image(model, model.shape().image()), 27.6e9, 0.3e9);
}

}  // namespace
}  // namespace occam
