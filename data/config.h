#pragma once
// The `data:` section of a config, and the few functions that turn it into data sets and loaders.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "data/dataset.h"
#include "data/loader.h"

namespace occam {

/// Training augmentation: a preset, whose members can be set one by one.
struct AugmentConfig {
  std::string preset = "none";
  std::optional<std::string> crop;
  std::optional<int64_t> padding;
  std::optional<double> scale_min, scale_max, flip, erase, mixup, cutmix, mix_prob, mix_switch;

  template <class V>
  void visit(V& v) {
    v("preset", preset,
      "none; light: flip and a small random crop; deit: random crop, flip, erasing, mixup and cutmix (DeiT "
      "without "
      "RandAugment and repeated augmentation)",
      Choices{"none", "light", "deit"}, Shorthand{});
    v("crop", crop, "centre: the evaluation cut; pad: that, shifted; resized: random area and aspect ratio",
      Choices{"centre", "pad", "resized"});
    v("padding", padding, "largest shift of crop=pad, in pixels", Range{0, 1024});
    v("scale_min", scale_min, "least share of the area that crop=resized keeps", Range{0, 1, true});
    v("scale_max", scale_max, "largest share of the area that crop=resized keeps", Range{0, 1, true});
    v("flip", flip, "probability of mirroring left and right", Range{0, 1});
    v("erase", erase, "probability of erasing a rectangle", Range{0, 1});
    v("mixup", mixup, "alpha of mixup; 0 = off", Range{0, 100});
    v("cutmix", cutmix, "alpha of cutmix; 0 = off", Range{0, 100});
    v("mix_prob", mix_prob, "probability of mixing a batch at all", Range{0, 1});
    v("mix_switch", mix_switch, "probability of cutmix where mixup is on too", Range{0, 1});
  }
};

/// Unset members take their default from the model, then from the data set: see resolve().
struct DataConfig {
  std::string name = "fashion_mnist";
  std::string root;
  std::string split;
  std::string train_split = "train";
  std::optional<int64_t> image_size, channels;
  std::optional<std::string> resize;
  std::optional<double> crop_pct;
  std::optional<std::vector<double>> mean, std;
  AugmentConfig aug;
  double holdout = 0;
  int64_t limit = 0;
  std::string order = "stratified";
  uint64_t seed = 0;
  std::string on_error = "stop";
  std::string resident = "auto";
  int workers = -1;
  std::string decoder = "auto";
  int64_t max_pixels = 178'956'970;
  int64_t images = 5000;
  int64_t classes = 10;

  template <class V>
  void visit(V& v) {
    v("name", name, "which data set", Choices{"fashion_mnist", "cifar10", "cifar100", "folder", "synthetic"},
      Shorthand{});
    v("root", root, "folder of the data set; folder: split folders or the class folders themselves");
    v("split", split,
      "what is evaluated or profiled: a split's name, or holdout; empty = the test images (folder: val, "
      "valid or "
      "test)");
    v("train_split", train_split, "what is trained on");
    v("image_size", image_size, "side of the network's input in pixels", Range{1, 16384});
    v("channels", channels, "1 or 3; colour becomes ITU-R 601 luma, grey is repeated", Range{1, 3});
    v("resize", resize, "antialiased filter, or none: cut or pad to image_size",
      Choices{"none", "bilinear", "bicubic"});
    v("crop_pct", crop_pct, "the shorter side is resized to image_size / crop_pct, then the centre is cut",
      Range{0, 1, true});
    v("mean", mean, "subtracted from values in [0, 1]; one a channel", Range{-10, 10});
    v("std", std, "divided by; one a channel", Range{0, 10, true});
    v("aug", aug, "training augmentation");
    v("holdout", holdout, "training images kept for ranking and choices: a fraction below 1, or a count",
      Range::at_least(0));
    v("limit", limit, "at most this many images; 0 = all", Range::at_least(0));
    v("order", order, "how limit chooses: stratified by class and seeded, or the first ones",
      Choices{"stratified", "sequential"});
    v("seed", seed, "of holdout, limit and synthetic images", Range::at_least(0));
    v("on_error", on_error, "at an unreadable image: stop, or skip and count it", Choices{"stop", "skip"});
    v("resident", resident,
      "decoded 8-bit images stay on the device and are augmented there: auto is on a GPU, when they take at "
      "most a quarter of its free memory",
      Choices{"auto", "true", "false"});
    v("workers", workers, "threads that prepare batches; 0 = none, -1 = by the machine", Range{-1, 256});
    v("decoder", decoder, "for JPEG: auto is libjpeg-turbo where built in, else stb_image",
      Choices{"auto", "stb", "libjpeg"});
    v("max_pixels", max_pixels, "larger pictures are refused", Range{1, 1e10});
    v("images", images, "synthetic: training images; a fifth as many test images", Range{1, 1e9});
    v("classes", classes, "synthetic: number of classes", Range{1, 1e6});
  }
};

/// What the model says about its input; 0 and "" where it says nothing.
struct ModelInput {
  std::string name;  // a timm name brings timm's evaluation settings
  int64_t image_size = 0, channels = 0;
};

/// Fills every unset member: explicit values win, then the model, then the data set's table. Idempotent; the
/// result is what config.resolved.yaml stores. Throws Error{usage} on members that do not go together.
DataConfig resolve(DataConfig config, const ModelInput& model = {});

struct Datasets {
  DatasetPtr train;    // without the held-out images; limited by data.limit
  DatasetPtr holdout;  // null when data.holdout is 0
  DatasetPtr test;     // whole
};
/// For training. Throws Error{input} when the data are not there or training and test classes differ.
Datasets make_datasets(const DataConfig& config);
/// For one pass over data.split (or `split`), limited by data.limit.
DatasetPtr make_dataset(const DataConfig& config);

/// The transform of a resolved config, with augmentation or without.
Transform make_transform(const DataConfig& config, bool train);
/// A loader of a resolved config. `options` gives batch, seed, epochs, device, start; workers, mixing and
/// error handling come from the config. Training shuffles, augments and mixes; evaluation goes through in
/// order.
std::unique_ptr<Loader> make_loader(const DataConfig& config, DatasetPtr data, LoaderOptions options,
                                    bool train);

}  // namespace occam
