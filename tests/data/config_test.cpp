#include "data/config.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/config_visit.h"
#include "core/error.h"
#include "tests/data/make_sets.h"

namespace occam::testing {
namespace {

namespace fs = std::filesystem;

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(DataConfig, DefaultsComeFromTheDataSet) {
  DataConfig c = resolve({.name = "fashion_mnist"});
  EXPECT_EQ(c.root, "/usr/share/datasets/fashion-mnist");
  EXPECT_EQ(c.image_size, 28);
  EXPECT_EQ(c.channels, 1);
  EXPECT_EQ(c.resize, "none");
  EXPECT_EQ(*c.mean, list(0.2860));
  c = resolve({.name = "cifar100", .root = "x"});
  EXPECT_EQ(c.image_size, 32);
  EXPECT_EQ(c.mean->size(), 3u);
  c = resolve({.name = "folder", .root = "x"});
  EXPECT_EQ(c.image_size, 224);
  EXPECT_EQ(c.crop_pct, 0.875);
  EXPECT_EQ(c.resize, "bicubic");
}

TEST(DataConfig, TheModelWinsOverTheDataSetAndTheUserOverBoth) {
  DataConfig c = resolve({.name = "folder", .root = "x"}, {.name = "vit_base_patch16_224"});
  EXPECT_EQ(c.crop_pct, 0.9);
  EXPECT_EQ(*c.std, list(0.5, 0.5, 0.5));
  c = resolve({.name = "fashion_mnist"}, {.name = "deit_base_patch16_384"});
  EXPECT_EQ(c.image_size, 384);
  EXPECT_EQ(c.channels, 3);
  EXPECT_EQ(c.resize, "bicubic");
  EXPECT_EQ(c.crop_pct, 1.0);
  EXPECT_EQ(*c.mean, list(0.485, 0.456, 0.406));
  c = resolve({.name = "fashion_mnist"}, {.name = "vit", .image_size = 28, .channels = 3});
  EXPECT_EQ(c.resize, "none");
  EXPECT_EQ(*c.mean, list(0.2860, 0.2860, 0.2860));
  c = resolve({.name = "cifar10", .root = "x", .channels = 1, .crop_pct = 0.8});
  EXPECT_NEAR(c.mean->front(), 0.299 * 0.4914 + 0.587 * 0.4822 + 0.114 * 0.4465, 1e-12);
  EXPECT_EQ(c.crop_pct, 0.8);
  EXPECT_EQ(resolve({.name = "cifar10", .root = "x", .image_size = 64}).resize, "bicubic");
}

TEST(DataConfig, PresetsCanBeChangedOneByOne) {
  DataConfig c = resolve({.name = "folder", .root = "x", .aug = {.preset = "deit", .erase = 0.1}});
  EXPECT_EQ(c.aug.crop, "resized");
  EXPECT_EQ(c.aug.flip, 0.5);
  EXPECT_EQ(c.aug.erase, 0.1);
  EXPECT_EQ(c.aug.mixup, 0.8);
  c = resolve({.name = "cifar10", .root = "x", .aug = {.preset = "deit"}});
  EXPECT_EQ(c.aug.crop, "pad");
  EXPECT_EQ(c.aug.padding, 4);
  c = resolve({.name = "cifar10", .root = "x", .aug = {.preset = "none"}});
  EXPECT_EQ(c.aug.crop, "centre");
  EXPECT_EQ(c.aug.mixup, 0);
  EXPECT_EQ(make_transform(resolve({.aug = {.preset = "light"}}), true).options().augment.flip, 0.5);
  EXPECT_EQ(make_transform(resolve({.aug = {.preset = "light"}}), false).options().augment.flip, 0);
}

TEST(DataConfig, ResolvedConfigsReadBackAndResolveToThemselves) {
  ModelInput model{.name = "deit_tiny_patch16_224"};
  ConfigNode once =
      describe_config(resolve({.name = "cifar10", .root = "x", .aug = {.preset = "deit"}}, model));
  DataConfig back;
  read_config(once, back);
  ConfigNode twice = describe_config(resolve(back, model));
  EXPECT_TRUE(config_changes(once, twice).empty());
  for (const char* key : {"image_size", "mean", "crop_pct", "aug.mix_switch"})
    EXPECT_FALSE(find_config(once, key)->is_null()) << key;
}

TEST(DataConfig, ResidentIsAutoTrueOrFalse) {
  ConfigNode node = describe_config(DataConfig{});
  auto at = std::ranges::find_if(node.items, [](const ConfigNode& n) { return n.key == "resident"; });
  ASSERT_NE(at, node.items.end());
  for (bool quoted : {true, false})  // as YAML reads 'true' and true
    for (const char* text : {"auto", "true", "false"}) {
      at->text = text;
      at->is_text = quoted;
      DataConfig c;
      read_config(node, c);
      EXPECT_EQ(c.resident, text);
    }
  at->text = "yes";
  DataConfig c;
  EXPECT_THROW(read_config(node, c), Error);
}

TEST(DataConfig, RefusesWhatDoesNotGoTogether) {
  EXPECT_TRUE(has(error_of([] { resolve({.name = "imagenet"}); }), "data.name=imagenet"));
  EXPECT_TRUE(has(error_of([] { resolve({.channels = 2}); }), "data.channels=2"));
  EXPECT_TRUE(has(error_of([] { resolve({.mean = {{0.5, 0.5}}}); }), "data.mean has 2"));
  EXPECT_TRUE(has(error_of([] { make_dataset(resolve({.name = "cifar10"})); }), "needs data.root"));
  EXPECT_TRUE(has(error_of([] { make_dataset(resolve({.split = "val2"})); }), "data.split=val2"));
}

TEST(DataConfig, SyntheticTrainsHoldsOutAndLimits) {
  DataConfig c = resolve({.name = "synthetic", .image_size = 8, .holdout = 0.1, .limit = 50, .images = 200});
  Datasets sets = make_datasets(c);
  EXPECT_EQ(sets.train->size(), 50);
  EXPECT_EQ(sets.holdout->size(), 20);
  EXPECT_EQ(sets.test->size(), 40);
  EXPECT_EQ(make_dataset(c)->size(), 40);
  c.split = "holdout";
  EXPECT_EQ(make_dataset(c)->path(3), sets.holdout->path(3));
  EXPECT_EQ(make_datasets(c).test->size(), 20);
  c.split = "train";
  EXPECT_EQ(make_dataset(c)->size(), 50);
  EXPECT_TRUE(has(error_of([&] { make_datasets(c); }), "would be the same"));
  c.split = "holdout";
  c.holdout = 0;
  EXPECT_TRUE(has(error_of([&] { make_dataset(c); }), "needs data.holdout"));

  c = resolve({.name = "synthetic", .image_size = 8, .aug = {.preset = "deit"}, .workers = 1, .images = 30});
  auto loader = make_loader(c, make_datasets(c).train, {.batch = 16}, true);
  Batch batch = *loader->next();
  EXPECT_EQ(batch.images.shape(), (Shape{16, 3, 8, 8}));
  EXPECT_EQ(batch.targets.shape(), (Shape{16, 10}));
  loader = make_loader(c, make_dataset(c), {.batch = 4}, false);
  batch = *loader->next();
  EXPECT_FALSE(batch.targets);
  EXPECT_EQ(batch.indices, list(0, 1, 2, 3));
}

TEST(DataConfig, FolderFindsItsSplits) {
  TempFolder tmp;
  for (const char* path : {"train/a/1.png", "train/a/2.png", "train/b/1.png", "val/a/1.png", "val/b/2.png"})
    copy_image("rgb.png", tmp / path);
  DataConfig c = resolve({.name = "folder", .root = tmp.path()});
  Datasets sets = make_datasets(c);
  EXPECT_EQ(sets.train->size(), 3);
  EXPECT_EQ(sets.test->size(), 2);
  EXPECT_EQ(make_dataset(c)->path(1), (tmp / "val/b/2.png").string());
  c.split = "train";
  EXPECT_EQ(make_dataset(c)->size(), 3);
  EXPECT_TRUE(has(error_of([&] { make_datasets(c); }), "would be the same"));
  c.split = "dev";
  EXPECT_TRUE(has(error_of([&] { make_dataset(c); }), "no folder 'dev'"));

  // Class folders themselves.
  c.split = "";
  c.root = (tmp / "val").string();
  EXPECT_EQ(make_dataset(c)->size(), 2);
  EXPECT_TRUE(has(error_of([&] { make_datasets(c); }), "would be the same"));
  c.root = (tmp / "train").string();
  c.split = "holdout";
  c.holdout = 1;
  EXPECT_EQ(make_datasets(c).test->size(), 1);

  c = resolve({.name = "folder", .root = tmp.path()});
  copy_image("rgb.png", tmp / "val/c/1.png");
  EXPECT_TRUE(has(error_of([&] { make_datasets(c); }), "2 training classes but 3 test classes"));
  fs::remove_all(tmp / "val/b");
  EXPECT_TRUE(has(error_of([&] { make_datasets(c); }), "class 1 is 'b' in training and 'c' in test"));
  fs::remove_all(tmp / "train");
  EXPECT_TRUE(has(error_of([&] { make_datasets(c); }), "no folder 'train'"));
}

}  // namespace
}  // namespace occam::testing
