// Captured steps and forward passes against eager ones.
#include <gtest/gtest.h>

#include "core/grad_mode.h"
#include "core/rng.h"
#include "data/config.h"
#include "nn/capture.h"
#include "nn/state.h"
#include "nn/train/loop.h"
#include "nn/train/loss.h"
#include "nn/vit/vit.h"

namespace occam {
namespace {

VitShape small_shape() {
  VitShape s;
  s.image_size = 16, s.patch = 4, s.dim = 32, s.depth = 3, s.heads = 2, s.classes = 7;
  return s;
}

std::unique_ptr<VisionTransformer> small_model(Device device, DType dtype) {
  auto model =
      std::make_unique<VisionTransformer>(small_shape(), VitOptions{.drop_path = 0.3, .dropout = 0.1});
  initialize(*model, 3);
  model->to(device);
  model->set_compute_dtype(dtype);
  return model;
}

Batch batch_of(int64_t size, int64_t number, Device device) {
  Rng rng(uint64_t(number), "capture_test");
  Batch batch;
  batch.images = raw::to(rand_normal(small_shape().image().with(0, size), 0, 1, rng), device);
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < size; ++i) labels.push_back(rng.below(small_shape().classes));
  batch.labels = raw::to(from_vector(labels), device);
  batch.indices.resize(size_t(size));
  return batch;
}

struct Trained {
  NamedTensors weights, averages, optimizer;
  double norm = 0;
  bool captured = false;
  std::string fallback;
};

/// 50 steps; every tenth has a smaller batch, as the last of an epoch.
Trained train(bool capture, DType dtype) {
  const Device gpu = cuda_device();
  auto model = small_model(gpu, dtype);
  LoopConfig config;
  config.capture = capture;
  config.ema = 0.9;
  config.optim.clip = 1;
  config.log_every = 7;
  TrainLoop loop(*model, config, 50, 10, 5);
  model->train();
  Trained t;
  loop.on_log = [&](const StepLog& log) { t.norm += log.loss + log.grad_norm; };
  for (int64_t i = 0; i < 50; ++i)
    loop.run(batch_of(i % 10 == 9 ? 5 : 12, i, gpu), [&](const Batch& b) {
      return label_loss(model->logits(raw::to(b.images, model->compute_dtype())), b, 0.1);
    });
  t.captured = loop.captured();
  t.fallback = loop.capture_fallback();
  for (const auto& [name, tensor] : state_dict(*model)) t.weights.emplace_back(name, raw::to(tensor, kCPU));
  for (const auto& [name, tensor] : loop.ema()->state()) t.averages.emplace_back(name, raw::to(tensor, kCPU));
  return t;
}

TEST(Capture, FiftyStepsEndWithTheSameBits) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  for (DType dtype : {DType::f32, DType::bf16}) {
    Trained eager = train(false, dtype), captured = train(true, dtype);
    EXPECT_FALSE(eager.captured);
    EXPECT_TRUE(captured.captured) << captured.fallback;
    EXPECT_EQ(eager.norm, captured.norm);
    ASSERT_EQ(eager.weights.size(), captured.weights.size());
    for (size_t i = 0; i < eager.weights.size(); ++i) {
      EXPECT_EQ(eager.weights[i].second.to_vector<float>(), captured.weights[i].second.to_vector<float>())
          << eager.weights[i].first;
      EXPECT_EQ(eager.averages[i].second.to_vector<float>(), captured.averages[i].second.to_vector<float>())
          << eager.averages[i].first;
    }
  }
}

TEST(Capture, ABatchMadeInPlaceIsNotCopied) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  DataConfig config;
  config.name = "synthetic";
  config.image_size = small_shape().image_size;
  config.images = 54;  // four batches of 12 and one of 6
  config.classes = small_shape().classes;
  config.aug.preset = "deit";
  const DataConfig data = resolve(config);
  auto train = [&](bool in_place) {
    auto model = small_model(cuda_device(), DType::bf16);
    LoaderOptions o;
    o.batch = 12, o.epochs = 4, o.device = cuda_device(), o.dtype = DType::bf16;
    std::unique_ptr<Loader> loader = make_loader(data, make_datasets(data).train, o, true);
    LoopConfig settings;
    settings.capture = in_place;
    TrainLoop loop(*model, settings, 20, 5, 5);
    model->train();
    while (!loop.done()) {
      std::optional<Batch> batch = loader->next(loop.place());
      if (!batch) continue;
      if (in_place && loop.step() > 0) {
        EXPECT_EQ(batch->images.data_ptr() == loop.place()->images.data_ptr(), batch->size() == 12);
      }
      loop.run(*batch, [&](const Batch& b) { return label_loss(model->logits(b.images), b, 0.1); });
    }
    EXPECT_EQ(loop.captured(), in_place) << loop.capture_fallback();
    return state_dict(*model);
  };
  const NamedTensors eager = train(false), captured = train(true);
  for (size_t i = 0; i < eager.size(); ++i)
    EXPECT_EQ(eager[i].second.to_vector<float>(), captured[i].second.to_vector<float>()) << eager[i].first;
}

TEST(Capture, WhatReadsOnTheHostRunsEagerlyAndSaysSo) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  auto model = small_model(cuda_device(), DType::f32);
  TrainLoop loop(*model, {}, 10, 10, 5);
  double seen = 0;
  for (int64_t i = 0; i < 4; ++i)
    loop.run(batch_of(6, i, cuda_device()), [&](const Batch& b) {
      Tensor loss = label_loss(model->logits(b.images), b, 0.1);
      seen += loss.item();  // waits for the device
      return loss;
    });
  EXPECT_GT(seen, 0);
  EXPECT_FALSE(loop.captured());
  EXPECT_NE(loop.capture_fallback().find("capture of a CUDA graph failed"), std::string::npos)
      << loop.capture_fallback();
}

void forward_follows_weights(Device device) {
  auto model = small_model(device, device.is_cuda() ? DType::bf16 : DType::f32);
  model->eval();
  CapturedForward forward(*model);
  auto plain = [&](const Tensor& images) {
    NoGrad no_grad;
    return (*model)(raw::to(images, model->compute_dtype())).to_vector<float>();
  };
  for (int64_t i = 0; i < 12; ++i) {
    if (i == 5) initialize(*model, 4, true);                       // new values in the same places
    if (i == 7) model->replace_mixer(1, {.with = "identity"}, 9);  // another network
    const Tensor images = batch_of(i == 10 ? 3 : 4, i, device).images;
    EXPECT_EQ(forward(images).to_vector<float>(), plain(images)) << "call " << i;
  }
  EXPECT_EQ(forward.fallback(), "");
}

TEST(Capture, ForwardFollowsWeightsMixersAndShapes) {
  forward_follows_weights(kCPU);
  if (cuda_available()) forward_follows_weights(cuda_device());
}

}  // namespace
}  // namespace occam
