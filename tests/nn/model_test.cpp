// Models from settings and files, and back.
#include "nn/vit/model.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "autograd/engine.h"
#include "core/config_visit.h"
#include "core/grad_mode.h"
#include "core/io/json.h"
#include "nn/state.h"
#include "ops/cross_entropy/op.h"
#include "ops/elementwise/op.h"
#include "tests/core/expect_error.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace {

ModelConfig from_json(const std::string& text) {
  ModelConfig config;
  read_config(config_from_json(parse_json(text, "test"), "test"), config);
  return config;
}

const char* kSmall =
    R"({"name": "vit", "image_size": 16, "patch": 4, "dim": 24, "depth": 3, "heads": 2, "classes": 5)";

std::vector<float> logits(VisionTransformer& model) {
  NoGrad no_grad;
  model.eval();
  Rng rng(1, "images");
  return model(rand_normal(model.shape().image(), 0, 1, rng)).to_vector<float>();
}

TEST(MakeModel, FreeFormAndReplaceAsMappingOrList) {
  auto one =
      make_model(from_json(std::string(kSmall) + R"(, "replace": {"blocks": 1, "with": "identity"}})"));
  EXPECT_EQ(one->mixer_choice(1).with, "identity");
  auto two = make_model(from_json(std::string(kSmall) + R"(, "replace": [{"blocks": [0, 2], "with": "bilstm",
      "options": {"hidden": 7}}, {"blocks": [1], "with": "identity"}]})"));
  EXPECT_EQ(two->mixer_choice(2).options, (MixerOptions{{"hidden", "7"}}));
  EXPECT_EQ(two->mixer_choice(1).with, "identity");
  EXPECT_EQ(make_model(from_json(R"("deit_tiny_patch16_224")"))->model_name(), "deit_tiny_patch16_224");
}

TEST(MakeModel, SettingsThatMakeNoModel) {
  EXPECT_OCCAM_ERROR(make_model({}), ErrorKind::usage, "model.name");
  EXPECT_OCCAM_ERROR(make_model({.name = "deit_tinny_patch16_224"}), ErrorKind::usage,
                     "deit_tiny_patch16_224");
  auto with = [](const std::string& more) { return from_json(std::string(kSmall) + ", " + more + "}"); };
  EXPECT_OCCAM_ERROR(make_model(with(R"("replace": {"blocks": [3]})")), ErrorKind::usage, "blocks 0 to 2");
  EXPECT_OCCAM_ERROR(make_model(with(R"("replace": {"blocks": [1, 1]})")), ErrorKind::usage, "named twice");
  EXPECT_OCCAM_ERROR(make_model(with(R"("replace": {"with": "bilstm"})")), ErrorKind::usage, "no block");
  EXPECT_OCCAM_ERROR(from_json(R"({"name": "vit", "imagesize": 3})"), ErrorKind::usage, "image_size");
  ModelConfig odd = from_json(std::string(kSmall) + "}");
  odd.heads = 5;
  EXPECT_OCCAM_ERROR(make_model(odd), ErrorKind::usage, "24 channels cannot be split into 5 heads");
  odd = from_json(std::string(kSmall) + "}");
  odd.image_size = 18;
  EXPECT_OCCAM_ERROR(make_model(odd), ErrorKind::usage, "no multiple");
}

TEST(Checkpoint, StudentOpensByItsFileAlone) {
  TempFolder folder;
  auto student = make_model(from_json(std::string(kSmall) + R"(, "distilled": true, "replace": [
      {"blocks": [2], "with": "bilstm", "options": {"hidden": 7}}, {"blocks": [0], "with": "identity"}]})"),
                            11);
  save_model(folder / "student.safetensors", *student, {{"note", "kept"}});
  auto opened = make_model({.checkpoint = folder / "student.safetensors"}, 99);
  EXPECT_EQ(opened->shape(), student->shape());
  EXPECT_EQ(opened->mixer_choice(2), student->mixer_choice(2));
  EXPECT_EQ(logits(*opened), logits(*student));
  EXPECT_EQ(Safetensors(folder / "student.safetensors").metadata().at("note"), "kept");
  // Replacing on top of what the file holds keeps the loaded projection.
  ModelConfig more{.checkpoint = folder / "student.safetensors"};
  more.replace = {{{1}, "bilstm", {}}};
  auto again = make_model(more, 5);
  EXPECT_EQ(again->mixer_choice(0).with, "identity");
  EXPECT_EQ(again->block(1).mixer().proj()->weight().master().to_vector<float>(),
            student->block(1).mixer().proj()->weight().master().to_vector<float>());
}

TEST(Checkpoint, WithoutStructureNeedsANameAndTakesClassesFromTheHead) {
  TempFolder folder;
  const std::string path = folder / "plain.safetensors";
  ModelConfig config = from_json(std::string(kSmall) + "}");
  auto model = make_model(config, 11);
  write_safetensors(path, state_dict(*model));
  EXPECT_OCCAM_ERROR(make_model({.checkpoint = path}), ErrorKind::usage, "plain.safetensors");
  config.classes.reset();
  config.checkpoint = path;
  auto opened = make_model(config);
  EXPECT_EQ(opened->shape().classes, 5);
  EXPECT_EQ(logits(*opened), logits(*model));

  config.classes = 6;
  EXPECT_OCCAM_ERROR(make_model(config), ErrorKind::usage, "has 5 classes, not 6; model.new_head=true");
  config.new_head = true;
  opened = make_model(config, 4);
  EXPECT_EQ(opened->shape().classes, 6);
  EXPECT_EQ(opened->block(0).mixer().proj()->weight().master().to_vector<float>(),
            model->block(0).mixer().proj()->weight().master().to_vector<float>());
}

TEST(Checkpoint, AnotherImageSizeResamplesPositions) {
  TempFolder folder;
  const std::string path = folder / "m.safetensors";
  save_model(path, *make_model(from_json(std::string(kSmall) + "}"), 11));
  ModelConfig config{.checkpoint = path};
  config.image_size = 24;
  auto model = make_model(config);
  EXPECT_EQ(model->shape().tokens(), 37);
  EXPECT_EQ(logits(*model).size(), 5u);
}

TEST(Checkpoint, WhatDoesNotFitIsNamed) {
  TempFolder folder;
  const std::string path = folder / "m.safetensors";
  ModelConfig config = from_json(std::string(kSmall) + "}");
  auto model = make_model(config, 11);
  save_model(path, *model);
  ModelConfig other{.checkpoint = path};
  other.depth = 2;
  EXPECT_OCCAM_ERROR(make_model(other), ErrorKind::input, "blocks.2.norm1.weight");
  EXPECT_OCCAM_ERROR(make_model({.name = "deit_tiny_patch16_224", .checkpoint = path}), ErrorKind::usage,
                     "holds a vit, not a deit_tiny_patch16_224");
  auto broken = [&](const std::string& metadata) {
    write_safetensors(path, state_dict(*model), {{kModelMetadataKey, metadata}});
    return ModelConfig{.checkpoint = path};
  };
  EXPECT_OCCAM_ERROR(make_model(broken("{")), ErrorKind::input, "m.safetensors: metadata occam.model");
  EXPECT_OCCAM_ERROR(make_model(broken(R"({"name": 3, "depht": 1})")), ErrorKind::input, "depht");
  EXPECT_OCCAM_ERROR(make_model(broken(R"({"dim": 3})")), ErrorKind::input, "no model section");
  EXPECT_OCCAM_ERROR(make_model(broken(R"({"name": "resnet"})")), ErrorKind::input,
                     "m.safetensors: metadata");
  EXPECT_OCCAM_ERROR(make_model(broken(R"({"name": "vit", "image_size": 9000000000000000000})")),
                     ErrorKind::input, "from 1 to");
  EXPECT_OCCAM_ERROR(make_model(broken(R"({"name": "vit", "replace": {"blocks": [77]}})")), ErrorKind::input,
                     "blocks 0 to 11");
}

TEST(Checkpoint, HuggingFaceNames) {
  auto model = make_model(from_json(std::string(kSmall) + R"(, "distilled": true})"), 11);
  // The file as transformers writes DeiTForImageClassificationWithTeacher.
  NamedTensors file;
  auto put = [&](std::string name, const Tensor& t) { file.emplace_back(std::move(name), t); };
  for (const auto& [name, t] : state_dict(*model)) {
    std::string n = name;
    auto swap = [&](const std::string& from, const std::string& to) {
      if (size_t at = n.find(from); at != std::string::npos) n.replace(at, from.size(), to);
    };
    if (n.find("attn.qkv.") != std::string::npos) {
      const int64_t rows = t.size(0) / 3;
      for (int i = 0; i < 3; ++i) {
        std::string part = n;
        part.replace(0, 7, "deit.encoder.layer.");
        const char* which[] = {"query", "key", "value"};
        part.replace(part.find("attn.qkv"), 8, std::string("attention.attention.") + which[i]);
        put(part, raw::clone(raw::slice(t, 0, i * rows, rows)));
      }
      continue;
    }
    swap("attn.proj", "attention.output.dense");
    swap("mlp.fc1", "intermediate.dense");
    swap("mlp.fc2", "output.dense");
    swap("norm1", "layernorm_before");
    swap("norm2", "layernorm_after");
    if (n.starts_with("blocks.")) n.replace(0, 7, "deit.encoder.layer.");
    if (n == "cls_token") n = "deit.embeddings.cls_token";
    if (n == "dist_token") n = "deit.embeddings.distillation_token";
    if (n == "pos_embed") n = "deit.embeddings.position_embeddings";
    swap("patch_embed.proj", "deit.embeddings.patch_embeddings.projection");
    if (n.starts_with("norm.")) n = "deit.layernorm." + n.substr(5);
    if (n.starts_with("head.")) n = "cls_classifier." + n.substr(5);
    if (n.starts_with("head_dist.")) n = "distillation_classifier." + n.substr(10);
    put(n, t);
  }
  ASSERT_TRUE(looks_like_huggingface_vit(file));
  EXPECT_FALSE(looks_like_huggingface_vit(state_dict(*model)));
  TempFolder folder;
  ModelConfig config = from_json(std::string(kSmall) + R"(, "distilled": true})");
  config.checkpoint = folder / "hf.safetensors";
  write_safetensors(config.checkpoint, file);
  EXPECT_EQ(logits(*make_model(config)), logits(*model));

  std::erase_if(file,
                [](const auto& e) { return e.first == "deit.encoder.layer.1.attention.attention.key.bias"; });
  EXPECT_OCCAM_ERROR(remap_huggingface_vit(file), ErrorKind::input, "blocks.1.attn.qkv.bias");
}

TEST(Vit, DistilledGivesBothHeadsInTrainingAndTheirMeanInEvaluation) {
  auto model = make_model(from_json(std::string(kSmall) + R"(, "distilled": true})"), 11);
  EXPECT_EQ(model->shape().tokens(), 18);
  NoGrad no_grad;
  const Tensor x = ones({1, 3, 16, 16});
  const std::vector<Tensor> both = model->logits(x);
  ASSERT_EQ(both.size(), 2u);
  model->eval();
  const std::vector<Tensor> one = model->logits(x);
  ASSERT_EQ(one.size(), 1u);
  const auto a = both[0].to_vector<float>(), b = both[1].to_vector<float>(), mean = one[0].to_vector<float>();
  EXPECT_NE(a, b);
  for (size_t i = 0; i < mean.size(); ++i) EXPECT_FLOAT_EQ(mean[i], (a[i] + b[i]) / 2);
}

TEST(Vit, EveryParameterGetsAGradient) {
  auto model =
      make_model(from_json(std::string(kSmall) + R"(, "distilled": true, "drop_path": 0.1, "dropout": 0.1,
      "replace": [{"blocks": 1, "with": "bilstm"}, {"blocks": 2, "with": "identity"}]})"),
                 11);
  for (DType dtype : {DType::f32, DType::bf16}) {
    model->set_compute_dtype(dtype);
    model->zero_grad();
    Rng rng(1, "images");
    const std::vector<Tensor> y = model->logits(rand_normal(model->shape().image().with(0, 4), 0, 1, rng));
    EXPECT_EQ(y[0].dtype(), DType::f32);
    const Tensor labels = from_vector<int64_t>({0, 1, 2, 4});
    backward(add(cross_entropy(y[0], labels), cross_entropy(y[1], labels)));
    EXPECT_EQ(parameters_without_grad(*model), std::vector<std::string>{});
  }
}

TEST(Vit, StochasticDepthRisesLinearly) {
  VisionTransformer model({.image_size = 16, .patch = 4, .dim = 24, .depth = 5, .heads = 2},
                          {.drop_path = 0.2});
  for (int64_t i = 0; i < 5; ++i)
    EXPECT_DOUBLE_EQ(dynamic_cast<DropPath&>(*model.block(i).find("drop_path2")).p(), 0.05 * double(i));
}

TEST(Vit, WrongImagesAreRefused) {
  auto model = make_model(from_json(std::string(kSmall) + "}"), 11);
  EXPECT_OCCAM_ERROR((*model)(ones({1, 3, 20, 20})), ErrorKind::shape,
                     "images [1,3,20,20] for a model of [b,3,16,16]");
}

}  // namespace
}  // namespace occam
