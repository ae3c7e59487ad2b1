// Pixels kept on a device and batches made there: the same numbers as the host's transform and mixing give.
#include "data/render/render.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/error.h"
#include "data/config.h"
#include "data/loader.h"
#include "data/sets/sets.h"
#include "tests/data/golden.h"
#include "tests/data/make_sets.h"

namespace occam::testing {
namespace {

/// Every way that a pixel can take.
struct Case {
  std::string name;
  int64_t picture, channels_in, size, channels;
  std::optional<Filter> filter;
  Augment augment;
  MixOptions mix;
};

const std::vector<Case>& cases() {
  const Augment pad{.crop = CropMode::pad, .padding = 3, .flip = 0.5};
  const Augment part{.crop = CropMode::resized, .scale_min = 0.1, .flip = 0.5};
  Augment erasing = pad, erased_part = part;
  erasing.erase = erased_part.erase = 0.6;
  const MixOptions both{.mixup = 0.8, .cutmix = 1.0}, sometimes{.mixup = 1, .cutmix = 1, .probability = 0.5};
  static const std::vector<Case> table{
      {"plain", 12, 3, 12, 3, {}, {}, {}},
      {"padded picture", 9, 3, 12, 3, {}, {}, {}},
      {"cut picture", 17, 1, 12, 1, {}, {}, {.mixup = 1}},
      {"resized for evaluation", 19, 3, 13, 3, Filter::bicubic, {}, {}},
      {"grey repeated", 12, 1, 12, 3, {}, pad, both},
      {"luma", 15, 3, 12, 1, Filter::bilinear, pad, both},
      {"everything", 12, 3, 12, 3, {}, erasing, both},
      {"everything, odd side", 13, 3, 13, 3, {}, erasing, sometimes},
      {"cutmix", 12, 3, 12, 3, {}, pad, {.cutmix = 1}},
      {"parts enlarged", 12, 3, 12, 3, Filter::bicubic, part, {}},
      {"parts shrunk", 40, 3, 8, 3, Filter::bicubic, part, both},
      {"parts, bilinear luma", 30, 3, 16, 1, Filter::bilinear, erased_part, both},
      {"parts of grey", 20, 1, 16, 3, {}, erased_part, sometimes},
  };
  return table;
}

Transform transform_of(const Case& c) {
  TransformOptions o;
  o.size = c.size;
  o.channels = c.channels;
  o.filter = c.filter;
  const float mean[3] = {0.4f, 0.5f, 0.3f}, std[3] = {0.2f, 0.3f, 0.25f};
  o.mean.assign(mean, mean + c.channels);
  o.std.assign(std, std + c.channels);
  o.augment = c.augment;
  return Transform(o);
}

DatasetPtr data_of(const Case& c, int64_t images = 47) {
  return open_synthetic(
      {.images = images, .classes = 5, .size = c.picture, .channels = c.channels_in, .seed = 4});
}

LoaderOptions options_of(const Case& c, Resident resident, Device device = kCPU) {
  LoaderOptions o;
  o.batch = 15;  // odd, and the last one is not full
  o.shuffle = true;
  o.seed = 9;
  o.epochs = 3;
  o.workers = 2;
  o.prefetch = 2;
  o.mix = c.mix;
  o.classes = 7;
  o.device = device;
  o.resident = resident;
  return o;
}

struct Record {
  int64_t epoch, index;
  std::vector<int64_t> indices, labels;
  std::vector<float> images, targets;
  bool operator==(const Record&) const = default;
};

std::vector<Record> drain(Loader& loader) {
  std::vector<Record> all;
  for (int misses = 0; misses < 4;) {
    std::optional<Batch> b = loader.next();
    misses = b ? 0 : misses + 1;
    if (!b) continue;
    all.push_back({b->epoch,
                   b->index,
                   b->indices,
                   b->labels.to_vector<int64_t>(),
                   raw::to(b->images, DType::f32).to_vector<float>(),
                   {}});
    if (b->targets) all.back().targets = b->targets.to_vector<float>();
  }
  return all;
}

/// Noise on a GPU: its logf errs by 1 ulp and its sinf and cosf by 2, the host's by 1 each; the square root
/// halves the error of the logarithm. With the roundings of root and product on both sides that is below 6
/// ulp, on values up to sqrt(2 * 25 ln 2) = 5.9, and mixing weighs by shares of sum 1.
constexpr float kNoise = 6 * 0x1p-23f * 5.9f + 6 * 0x1p-23f;

void expect_same(const std::vector<Record>& got, const std::vector<Record>& expected, float tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t n = 0; n < got.size(); ++n) {
    SCOPED_TRACE(n);
    Record g = got[n], e = expected[n];
    ASSERT_EQ(g.images.size(), e.images.size());
    float worst = 0;
    for (size_t i = 0; i < g.images.size(); ++i)
      worst = std::isnan(g.images[i]) ? INFINITY : std::max(worst, std::fabs(g.images[i] - e.images[i]));
    EXPECT_LE(worst, tolerance);
    g.images = e.images = {};
    EXPECT_EQ(g, e);
  }
}

class Rendering : public ::testing::TestWithParam<size_t> {
 protected:
  const Case& c_ = cases()[GetParam()];
  std::vector<Record> host() {
    Loader loader(data_of(c_), transform_of(c_), options_of(c_, Resident::never));
    return drain(loader);
  }
};

TEST_P(Rendering, CpuEqualsTheTransform) {
  SCOPED_TRACE(c_.name);
  std::vector<Record> expected = host();
  ASSERT_EQ(expected.size(), 12u);
  for (int workers : {0, 1, 3}) {
    LoaderOptions o = options_of(c_, Resident::always);
    o.workers = workers;
    Loader loader(data_of(c_), transform_of(c_), o);
    EXPECT_TRUE(loader.residence().resident);
    EXPECT_EQ(drain(loader), expected) << workers;
  }
}

TEST_P(Rendering, GpuEqualsTheTransform) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  SCOPED_TRACE(c_.name);
  std::vector<Record> expected = host(), streamed;
  for (Resident resident : {Resident::never, Resident::automatic, Resident::always}) {
    Loader loader(data_of(c_), transform_of(c_), options_of(c_, resident, cuda_device()));
    EXPECT_EQ(loader.residence().resident, resident != Resident::never) << loader.residence().text;
    std::vector<Record> got = drain(loader);
    expect_same(got, expected, c_.augment.erase > 0 ? kNoise : 0);
    if (streamed.empty()) streamed = got;
    EXPECT_EQ(got, streamed) << "where pixels are kept changes no bit";
  }
}

INSTANTIATE_TEST_SUITE_P(All, Rendering, ::testing::Range(size_t(0), cases().size()));

std::vector<Device> devices() {
  std::vector<Device> all{kCPU};
  if (cuda_available()) all.push_back(cuda_device());
  return all;
}

TEST(Resident, Bf16RoundsWhatF32Holds) {
  for (Device device : devices())
    for (Resident resident : {Resident::never, Resident::always})
      for (size_t n : {6u, 7u}) {
        const Case& c = cases()[n];
        LoaderOptions o = options_of(c, resident, device);
        Loader wide(data_of(c), transform_of(c), o);
        o.dtype = DType::bf16;
        Loader narrow(data_of(c), transform_of(c), o);
        while (auto expected = wide.next()) {
          std::optional<Batch> got = narrow.next();
          ASSERT_EQ(got->images.dtype(), DType::bf16);
          EXPECT_EQ(raw::to(got->images, DType::f32).to_vector<float>(),
                    raw::to(raw::to(expected->images, DType::bf16), DType::f32).to_vector<float>());
        }
      }
}

/// Counts what is read; some images cannot be.
class Counting : public Dataset {
 public:
  Counting(DatasetPtr base, std::vector<int64_t> broken = {})
      : base_(std::move(base)), broken_(std::move(broken)) {}
  int64_t size() const override { return base_->size(); }
  const std::vector<std::string>& class_names() const override { return base_->class_names(); }
  int64_t channels() const override { return base_->channels(); }
  int64_t label(int64_t i) const override { return base_->label(i); }
  std::string path(int64_t i) const override { return "image " + std::to_string(i); }
  Rect common_size() const override { return common; }
  Sample get(int64_t i) const override {
    ++reads;
    if (std::count(broken_.begin(), broken_.end(), i) > 0) fail(ErrorKind::input, path(i) + " is broken");
    return base_->get(i);
  }
  mutable std::atomic<int64_t> reads{0};
  Rect common;

 private:
  DatasetPtr base_;
  std::vector<int64_t> broken_;
};

TEST(Resident, ReadsEveryImageOnceAndSharesIt) {
  const Case& c = cases()[6];
  for (Device device : devices()) {
    auto set = std::make_shared<Counting>(data_of(c));
    LoaderOptions o = options_of(c, Resident::always, device);
    o.workers = 0;
    Loader loader(set, transform_of(c), o);
    std::vector<Record> first = drain(loader);
    EXPECT_EQ(set->reads, 47);
    Loader again(set, transform_of(c), o);
    EXPECT_EQ(drain(again), first);
    EXPECT_EQ(set->reads, 47) << "a second loader finds the pixels";
    // Without augmentation the evaluation cut is the same one.
    Case plain = c;
    plain.augment = {}, plain.mix = {};
    Loader evaluation(set, transform_of(plain), options_of(plain, Resident::always, device));
    drain(evaluation);
    EXPECT_EQ(set->reads, 47);
    // Another way of preparing pixels is another store.
    plain.size = 10;
    Loader other(set, transform_of(plain), options_of(plain, Resident::always, device));
    drain(other);
    EXPECT_GE(set->reads, 94);
  }
}

TEST(Resident, ResumesAtAnyBatch) {
  const Case& c = cases()[6];
  for (Device device : devices()) {
    LoaderOptions o = options_of(c, Resident::always, device);
    Loader whole(data_of(c), transform_of(c), o), first(data_of(c), transform_of(c), o);
    std::vector<Record> expected = drain(whole);
    for (size_t taken = 0; taken < expected.size();) {
      o.start = first.state();
      Loader second(data_of(c), transform_of(c), o);
      EXPECT_EQ(drain(second), std::vector<Record>(expected.begin() + long(taken), expected.end())) << taken;
      for (int i = 0; i < 3; ++i) taken += first.next().has_value();
    }
  }
}

TEST(Resident, UnreadableImagesAreMetInTheirTurn) {
  const Case& c = cases()[6];
  std::vector<int64_t> broken{3, 20};
  for (Device device : devices()) {
    LoaderOptions o = options_of(c, Resident::always, device);
    o.shuffle = false;
    Loader stops(std::make_shared<Counting>(data_of(c), broken), transform_of(c), o);
    EXPECT_THROW(stops.next(), Error);
    o.skip_errors = true;
    Loader skips(std::make_shared<Counting>(data_of(c), broken), transform_of(c), o);
    o.resident = Resident::never;
    Loader streams(std::make_shared<Counting>(data_of(c), broken), transform_of(c), o);
    std::vector<Record> got = drain(skips);
    EXPECT_EQ(got, drain(streams));
    EXPECT_EQ(got[0].indices.size(), 14u);
    EXPECT_EQ(skips.skipped(), streams.skipped());
    EXPECT_EQ(skips.skipped().size(), 2u);
  }
}

TEST(Resident, SaysWhyNot) {
  Case c = cases()[9];  // parts of pictures
  auto set = std::make_shared<Counting>(data_of(c));
  EXPECT_THROW(Loader(set, transform_of(c), options_of(c, Resident::always)), Error);
  try {
    Loader(set, transform_of(c), options_of(c, Resident::always));
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::usage);
    EXPECT_TRUE(has(e.what(), "data.resident=true: data.aug.crop=resized"));
  }
  set->common = {0, 0, 12, 12};
  Loader loader(set, transform_of(c), options_of(c, Resident::always));
  EXPECT_TRUE(has(loader.residence().text, "resident on cpu"));
  EXPECT_FALSE(Loader(set, transform_of(c), options_of(c, Resident::automatic)).residence().resident);
  // A promise that is not kept.
  set->common = {0, 0, 11, 12};
  Loader wrong(set, transform_of(c), options_of(c, Resident::always));
  EXPECT_THROW(wrong.next(), Error);
  // More than there is memory: 2^62 bytes, then more than 2^63.
  class Huge : public Counting {
   public:
    using Counting::Counting;
    int64_t size() const override { return count; }
    int64_t count = int64_t(1) << 53;
  };
  c = cases()[6];
  auto huge = std::make_shared<Huge>(data_of(c));
  LoaderOptions o = options_of(c, Resident::always);
  o.shuffle = false;
  EXPECT_THROW(Loader(huge, transform_of(c), o), Error);
  huge->count = int64_t(1) << 60;
  EXPECT_THROW(Loader(huge, transform_of(c), o), Error);
}

TEST(Resident, OnePassIsStreamedUntilThereIsAnother) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  const Case& c = cases()[0];
  auto set = std::make_shared<Counting>(data_of(c));
  LoaderOptions o = options_of(c, Resident::automatic, cuda_device());
  o.epochs = 1;
  std::vector<Record> first;
  for (bool resident : {false, true, true}) {
    Loader loader(set, transform_of(c), o);
    EXPECT_EQ(loader.residence().resident, resident) << loader.residence().text;
    std::vector<Record> got = drain(loader);
    if (first.empty()) first = got;
    EXPECT_EQ(got, first);
  }
  EXPECT_EQ(set->reads, 94);
}

TEST(Resident, WritesIntoGivenTensors) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  const Case& c = cases()[6];
  LoaderOptions o = options_of(c, Resident::always, cuda_device());
  Loader plain(data_of(c), transform_of(c), o), placed(data_of(c), transform_of(c), o);
  std::vector<Record> expected = drain(plain);
  Batch into = *placed.next();
  Batch second = *placed.next(&into);
  EXPECT_EQ(second.images.data_ptr(), into.images.data_ptr());
  EXPECT_EQ(second.targets.data_ptr(), into.targets.data_ptr());
  EXPECT_EQ(into.images.to_vector<float>(), expected[1].images);
  EXPECT_EQ(into.labels.to_vector<int64_t>(), expected[1].labels);
  placed.next(&into);
  Batch last = *placed.next(&into);  // 2 images: of another shape
  EXPECT_NE(last.images.data_ptr(), into.images.data_ptr());
  EXPECT_EQ(last.images.to_vector<float>(), expected[3].images);
}

TEST(Resident, PicturesOfAFolderDiffer) {
  TempFolder tmp;
  for (const char* name : {"rgb.png", "grey.png", "420.jpg", "grey.jpg"})
    copy_image(name, tmp / ("train/a/" + std::string(name)));
  DataConfig config = resolve({.name = "folder",
                               .root = tmp.path(),
                               .split = "train",
                               .image_size = 24,
                               .aug = {.preset = "deit", .crop = "pad"}});
  std::vector<std::vector<Record>> got;
  for (const char* resident : {"false", "true"}) {
    config.resident = resident;
    auto loader = make_loader(config, make_dataset(config), {.batch = 2, .seed = 1, .epochs = 3}, true);
    EXPECT_EQ(loader->residence().resident, resident == std::string("true"));
    got.push_back(drain(*loader));
  }
  EXPECT_EQ(got[0], got[1]);
  EXPECT_FALSE(got[0].empty());
}

}  // namespace
}  // namespace occam::testing
