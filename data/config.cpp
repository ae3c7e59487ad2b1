#include "data/config.h"

#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "data/sets/sets.h"

namespace occam {

namespace fs = std::filesystem;

namespace {

const std::vector<double> kImagenetMean{0.485, 0.456, 0.406}, kImagenetStd{0.229, 0.224, 0.225};
const std::vector<double> kHalf{0.5, 0.5, 0.5};

/// What a data set is by itself. Means and deviations are those of the training images.
struct SetDefaults {
  const char* name;
  const char* root;
  int64_t size, channels;
  bool fixed_size;  // all images are size x size: no resizing unless another size is asked for
  double crop_pct;
  std::vector<double> mean, std;
};
const std::vector<SetDefaults>& set_table() {
  static const std::vector<SetDefaults> table{
      {"fashion_mnist", "/usr/share/datasets/fashion-mnist", 28, 1, true, 1.0, {0.2860}, {0.3530}},
      {"cifar10", "", 32, 3, true, 1.0, {0.4914, 0.4822, 0.4465}, {0.2470, 0.2435, 0.2616}},
      {"cifar100", "", 32, 3, true, 1.0, {0.5071, 0.4865, 0.4409}, {0.2673, 0.2564, 0.2762}},
      {"folder", "", 224, 3, false, 0.875, kImagenetMean, kImagenetStd},
      {"synthetic", "", 32, 3, true, 1.0, kHalf, kHalf},
  };
  return table;
}

/// timm's evaluation settings (timm 1.0, default_cfgs of vision_transformer.py and deit.py), all bicubic.
struct ModelDefaults {
  int64_t size = 224;
  double crop_pct = 0.9;
  std::vector<double> mean, std;
};
std::optional<ModelDefaults> model_defaults(const std::string& name) {
  if (name == "deit_base_patch16_384") return ModelDefaults{384, 1.0, kImagenetMean, kImagenetStd};
  if (name.starts_with("deit_")) return ModelDefaults{224, 0.9, kImagenetMean, kImagenetStd};
  if (name.starts_with("vit_")) return ModelDefaults{224, 0.9, kHalf, kHalf};
  return std::nullopt;
}

/// Statistics for another number of channels: grey is repeated; of colour the mean becomes the luma's and the
/// deviations are averaged, which is only near the luma's own.
std::vector<double> fit_channels(const std::vector<double>& values, int64_t channels, bool is_mean) {
  if (int64_t(values.size()) == channels) return values;
  if (channels == 3) return {values[0], values[0], values[0]};
  if (is_mean) return {0.299 * values[0] + 0.587 * values[1] + 0.114 * values[2]};
  return {(values[0] + values[1] + values[2]) / 3};
}

template <class T>
void default_to(std::optional<T>& member, const T& value) {
  if (!member) member = value;
}

void resolve_augment(AugmentConfig& a, bool small) {
  bool light = a.preset == "light", deit = a.preset == "deit";
  // DeiT's code shifts small images instead of resizing parts of them.
  default_to(a.crop, std::string(a.preset == "none" ? "centre" : small ? "pad" : "resized"));
  default_to(a.padding, int64_t(small && !deit ? 2 : 4));
  default_to(a.scale_min, light ? 0.5 : 0.08);
  default_to(a.scale_max, 1.0);
  default_to(a.flip, light || deit ? 0.5 : 0.0);
  default_to(a.erase, deit ? 0.25 : 0.0);
  default_to(a.mixup, deit ? 0.8 : 0.0);
  default_to(a.cutmix, deit ? 1.0 : 0.0);
  default_to(a.mix_prob, 1.0);
  default_to(a.mix_switch, 0.5);
}

DecodeOptions decode_options(const DataConfig& config) {
  JpegDecoder jpeg = config.decoder == "stb"       ? JpegDecoder::stb
                     : config.decoder == "libjpeg" ? JpegDecoder::libjpeg
                                                   : JpegDecoder::automatic;
  return {jpeg, config.max_pixels};
}

/// The folder of a split below data.root, or data.root itself when it holds the class folders. An empty
/// `split` means the usual names of evaluation images.
std::string folder_of_split(const DataConfig& config, const std::string& split) {
  const std::vector<std::string> evaluation{"val", "valid", "test"};
  fs::path root = config.root;
  OCCAM_CHECK(fs::is_directory(root), ErrorKind::input, "{}: no such folder; set data.root", config.root);
  auto there = [&](const std::string& name) { return fs::is_directory(root / name); };
  if (!split.empty() && there(split)) return (root / split).string();
  if (split.empty())
    for (const std::string& name : evaluation)
      if (there(name)) return (root / name).string();
  bool has_splits = there(config.train_split) || std::any_of(evaluation.begin(), evaluation.end(), there);
  OCCAM_CHECK(!has_splits && (split.empty() || split == config.train_split), ErrorKind::input,
              "{}: has no folder {}; set data.split or data.train_split", config.root,
              split.empty() ? "val, valid or test" : "'" + split + "'");
  return config.root;
}

bool is_train_split(const DataConfig& config, const std::string& split) {
  if (split == "train") return true;
  OCCAM_CHECK(split == "test" || split == "val" || split.empty(), ErrorKind::usage,
              "data.split={}: {} has the splits train and test", split, config.name);
  return false;
}

DatasetPtr open_split(const DataConfig& config, const std::string& split) {
  OCCAM_CHECK(!config.root.empty() || config.name == "synthetic", ErrorKind::usage,
              "data.name={} needs data.root: the folder that holds it", config.name);
  if (config.name == "folder")
    return open_image_folder(folder_of_split(config, split), decode_options(config));
  bool train = is_train_split(config, split);
  if (config.name == "fashion_mnist") return open_fashion_mnist(config.root, train);
  if (config.name == "cifar10") return open_cifar10(config.root, train);
  if (config.name == "cifar100") return open_cifar100(config.root, train);
  int64_t images = train ? config.images : std::max<int64_t>(config.images / 5, 1);
  return open_synthetic(
      {images, config.classes, *config.image_size, *config.channels, config.seed, train ? "train" : "test"});
}

HoldoutSplit open_training(const DataConfig& config) {
  DatasetPtr all = open_split(config, config.train_split);
  if (config.holdout == 0) return {all, nullptr};
  return holdout_split(all, config.holdout, config.seed);
}

DatasetPtr limited(const DataConfig& config, DatasetPtr data) {
  LimitOrder order = config.order == "sequential" ? LimitOrder::sequential : LimitOrder::stratified;
  return limit(std::move(data), config.limit, order, config.seed);
}

void check_same_classes(const DataConfig& config, const Dataset& train, const Dataset& test) {
  if (train.class_names() == test.class_names()) return;
  OCCAM_CHECK(train.classes() == test.classes(), ErrorKind::input,
              "{}: {} training classes but {} test classes; labels would not mean the same", config.root,
              train.classes(), test.classes());
  for (size_t k = 0; k < train.class_names().size(); ++k)
    OCCAM_CHECK(train.class_names()[k] == test.class_names()[k], ErrorKind::input,
                "{}: class {} is '{}' in training and '{}' in test images", config.root, k,
                train.class_names()[k], test.class_names()[k]);
}

}  // namespace

DataConfig resolve(DataConfig config, const ModelInput& model) {
  const SetDefaults* set = nullptr;
  for (const SetDefaults& entry : set_table())
    if (config.name == entry.name) set = &entry;
  OCCAM_CHECK(set, ErrorKind::usage,
              "data.name={}: expected fashion_mnist, cifar10, cifar100, folder or synthetic", config.name);
  std::optional<ModelDefaults> timm = model_defaults(model.name);
  if (config.root.empty()) config.root = set->root;

  int64_t model_size = model.image_size > 0 ? model.image_size : timm ? timm->size : 0;
  default_to(config.image_size, model_size > 0 ? model_size : set->size);
  int64_t model_channels = model.channels > 0 ? model.channels : timm ? 3 : 0;
  default_to(config.channels, model_channels > 0 ? model_channels : set->channels);
  OCCAM_CHECK(config.channels == 1 || config.channels == 3, ErrorKind::usage,
              "data.channels={}: expected 1 or 3", *config.channels);
  bool native = set->fixed_size && (*config.image_size == set->size || config.name == "synthetic");
  default_to(config.resize, std::string(native ? "none" : "bicubic"));
  default_to(config.crop_pct, timm ? timm->crop_pct : set->crop_pct);
  default_to(config.mean, fit_channels(timm ? timm->mean : set->mean, *config.channels, true));
  default_to(config.std, fit_channels(timm ? timm->std : set->std, *config.channels, false));
  resolve_augment(config.aug, set->fixed_size && *config.image_size <= 32);
  make_transform(config, true);  // checks what no single key can say
  return config;
}

Datasets make_datasets(const DataConfig& config) {
  HoldoutSplit training = open_training(config);
  bool test_is_holdout = config.split == "holdout";
  OCCAM_CHECK(!test_is_holdout || training.held, ErrorKind::usage,
              "data.split=holdout needs data.holdout above 0");
  DatasetPtr test;
  if (test_is_holdout) {
    test = training.held;
  } else {
    bool folder = config.name == "folder";
    bool same = folder ? folder_of_split(config, config.split) == folder_of_split(config, config.train_split)
                       : is_train_split(config, config.split) == is_train_split(config, config.train_split);
    OCCAM_CHECK(!same, ErrorKind::input,
                "data.root={}: training and test images would be the same; {}set data.holdout and "
                "data.split=holdout",
                config.root, folder ? "add a folder 'val', or " : "");
    test = open_split(config, config.split);
  }
  check_same_classes(config, *training.rest, *test);
  return {limited(config, training.rest), training.held, test};
}

DatasetPtr make_dataset(const DataConfig& config) {
  if (config.split != "holdout") return limited(config, open_split(config, config.split));
  OCCAM_CHECK(config.holdout > 0, ErrorKind::usage, "data.split=holdout needs data.holdout above 0");
  return limited(config, open_training(config).held);
}

Transform make_transform(const DataConfig& config, bool train) {
  OCCAM_CHECK(
      config.image_size && config.channels && config.resize && config.crop_pct && config.mean && config.std,
      ErrorKind::internal, "make_transform needs a config that went through resolve()");
  TransformOptions t;
  t.size = *config.image_size;
  t.channels = *config.channels;
  t.filter = Filter::bicubic;
  if (*config.resize == "none") t.filter = std::nullopt;
  if (*config.resize == "bilinear") t.filter = Filter::bilinear;
  t.crop_pct = *config.crop_pct;
  t.mean.assign(config.mean->begin(), config.mean->end());
  t.std.assign(config.std->begin(), config.std->end());
  if (train) {
    const AugmentConfig& a = config.aug;
    t.augment.crop = a.crop == "pad"       ? CropMode::pad
                     : a.crop == "resized" ? CropMode::resized
                                           : CropMode::centre;
    t.augment.padding = a.padding.value_or(0);
    t.augment.scale_min = a.scale_min.value_or(0.08);
    t.augment.scale_max = a.scale_max.value_or(1);
    t.augment.flip = a.flip.value_or(0);
    t.augment.erase = a.erase.value_or(0);
  }
  return Transform(std::move(t));
}

std::unique_ptr<Loader> make_loader(const DataConfig& config, DatasetPtr data, LoaderOptions options,
                                    bool train) {
  options.workers = config.workers;
  options.skip_errors = config.on_error == "skip";
  options.resident = config.resident == "true"    ? Resident::always
                     : config.resident == "false" ? Resident::never
                                                  : Resident::automatic;
  options.shuffle = train;
  options.mix = {};
  if (train)
    options.mix = {config.aug.mixup.value_or(0), config.aug.cutmix.value_or(0),
                   config.aug.mix_prob.value_or(1), config.aug.mix_switch.value_or(0.5)};
  return std::make_unique<Loader>(std::move(data), make_transform(config, train), std::move(options));
}

}  // namespace occam
