#include "data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <set>
#include <thread>

#include "core/error.h"
#include "data/sets/sets.h"
#include "tests/data/golden.h"

namespace occam::testing {
namespace {

DatasetPtr images(int64_t count) {
  return open_synthetic({.images = count, .classes = 5, .size = 12, .seed = 2});
}

Transform augmenting() {
  TransformOptions o;
  o.size = 12;
  o.filter.reset();
  o.mean = o.std = {0.5f, 0.5f, 0.5f};
  o.augment = {.crop = CropMode::pad, .padding = 2, .flip = 0.5, .erase = 0.25};
  return Transform(o);
}

LoaderOptions options(int workers) {
  LoaderOptions o;
  o.batch = 20;
  o.shuffle = true;
  o.seed = 3;
  o.epochs = 3;
  o.workers = workers;
  o.mix = {.mixup = 0.8, .cutmix = 1.0};
  return o;
}

/// Everything a batch holds, bit by bit.
struct Record {
  int64_t epoch, index;
  std::vector<int64_t> indices, labels;
  std::vector<float> images, targets;
  bool operator==(const Record&) const = default;
};

Record record(const Batch& b) {
  Record r{b.epoch, b.index, b.indices, b.labels.to_vector<int64_t>(), b.images.to_vector<float>(), {}};
  if (b.targets) r.targets = b.targets.to_vector<float>();
  return r;
}

std::vector<Record> drain(Loader& loader) {
  std::vector<Record> all;
  for (int misses = 0; misses < 4;) {
    std::optional<Batch> batch = loader.next();
    if (batch) all.push_back(record(*batch));
    misses = batch ? 0 : misses + 1;
  }
  return all;
}

TEST(Loader, ResultsDoNotDependOnWorkers) {
  Loader alone(images(107), augmenting(), options(0));
  std::vector<Record> expected = drain(alone);
  ASSERT_EQ(expected.size(), 18u);
  EXPECT_EQ(expected[5].indices.size(), 7u);
  EXPECT_EQ(expected[7].epoch, 1);
  EXPECT_EQ(expected[7].index, 1);
  EXPECT_EQ(expected[0].targets.size(), 20u * 5);
  EXPECT_NE(expected[0].images, expected[6].images);
  for (int workers : {1, 2, 7}) {
    LoaderOptions o = options(workers);
    o.prefetch = workers == 7 ? 1 : 4;
    Loader loader(images(107), augmenting(), o);
    EXPECT_EQ(drain(loader), expected) << workers;
  }
}

TEST(Loader, AugmentationBelongsToTheImageAndEpoch) {
  std::map<std::pair<int64_t, int64_t>, std::vector<float>> seen;
  for (int64_t size : {20, 7}) {
    LoaderOptions o = options(1);
    o.mix = {};
    o.batch = size;
    Loader loader(images(40), augmenting(), o);
    for (const Record& r : drain(loader))
      for (size_t i = 0; i < r.indices.size(); ++i) {
        size_t numel = r.images.size() / r.indices.size();
        std::vector<float> image(r.images.begin() + long(i * numel),
                                 r.images.begin() + long((i + 1) * numel));
        auto [entry, fresh] = seen.insert({{r.epoch, r.indices[i]}, image});
        EXPECT_EQ(entry->second, image);
        EXPECT_EQ(fresh, size == 20);
      }
  }
}

TEST(Loader, MixingIsDrawnForEachBatch) {
  LoaderOptions o = options(2);
  o.mix = {.mixup = 1.0};
  Loader loader(images(107), augmenting(), o);
  std::set<float> shares;  // the larger share of each batch; pairs of one class give 1
  for (const Record& r : drain(loader)) {
    float share = 0;
    for (float t : r.targets)
      if (t < 0.9999f) share = std::max(share, t);
    shares.insert(share);
  }
  EXPECT_GT(shares.size(), 15u);  // of 18
}

TEST(Loader, EpochsEndWithNothingOnceEach) {
  LoaderOptions o = options(2);
  o.epochs = 2;
  Loader loader(images(40), augmenting(), o);
  std::string pattern;
  for (int i = 0; i < 8; ++i) pattern += loader.next() ? 'b' : '-';
  EXPECT_EQ(pattern, "bb-bb---");
}

TEST(Loader, ResumesAtAnyBatch) {
  Loader whole(images(107), augmenting(), options(2));
  std::vector<Record> expected = drain(whole);
  Loader first(images(107), augmenting(), options(2));
  for (size_t taken = 0; taken < expected.size();) {
    LoaderOptions o = options(2);
    o.start = first.state();
    Loader second(images(107), augmenting(), o);
    std::vector<Record> rest = drain(second);
    EXPECT_EQ(rest, std::vector<Record>(expected.begin() + long(taken), expected.end())) << taken;
    for (int i = 0; i < 4; ++i) taken += first.next().has_value();
  }
  LoaderOptions o = options(0);
  o.start = {0, 6};  // all batches of epoch 0 are out, its end is not told
  Loader end(images(107), augmenting(), o);
  EXPECT_FALSE(end.next());
  EXPECT_EQ(end.state(), (LoaderState{1, 0}));
  o.start = {0, 7};
  EXPECT_THROW(Loader(images(107), augmenting(), o), Error);
}

TEST(Loader, WithoutMixingThereAreNoTargets) {
  LoaderOptions o = options(1);
  o.mix = {};
  o.shuffle = false;
  o.drop_last = true;
  o.epochs = 1;
  Loader loader(images(107), augmenting(), o);
  EXPECT_EQ(loader.batches_per_epoch(), 5);
  int64_t expected = 0;
  while (auto batch = loader.next()) {
    EXPECT_FALSE(batch->targets);
    EXPECT_EQ(batch->images.shape(), (Shape{20, 3, 12, 12}));
    for (int64_t i = 0; i < 20; ++i, ++expected) {
      EXPECT_EQ(batch->indices[size_t(i)], expected);
      EXPECT_EQ(batch->labels.data<int64_t>()[i], expected % 5);
    }
  }
  EXPECT_EQ(expected, 100);
}

/// Some images cannot be read; some take long, so that later batches are ready first.
class Faulty : public Dataset {
 public:
  Faulty(int64_t size, std::vector<int64_t> broken, ErrorKind kind = ErrorKind::input)
      : base_(images(size)), broken_(std::move(broken)), kind_(kind) {}
  int64_t size() const override { return base_->size(); }
  const std::vector<std::string>& class_names() const override { return base_->class_names(); }
  int64_t channels() const override { return 3; }
  int64_t label(int64_t i) const override { return base_->label(i); }
  std::string path(int64_t i) const override { return "image " + std::to_string(i); }
  Sample get(int64_t i) const override {
    ++calls;
    if (i % 40 < 3) std::this_thread::sleep_for(std::chrono::milliseconds(3));
    if (std::ranges::find(broken_, i) != broken_.end()) fail(kind_, path(i) + " is broken");
    return base_->get(i);
  }
  mutable std::atomic<int64_t> calls{0};

 private:
  DatasetPtr base_;
  std::vector<int64_t> broken_;
  ErrorKind kind_;
};

LoaderOptions in_order(int workers, int64_t batch) {
  LoaderOptions o;
  o.batch = batch;
  o.workers = workers;
  return o;
}

TEST(Loader, ErrorsComeInTheirTurnAndStay) {
  for (int workers : {0, 1, 4}) {
    auto set = std::make_shared<Faulty>(400, std::vector<int64_t>{137, 85, 110});
    Loader loader(set, augmenting(), in_order(workers, 40));
    EXPECT_TRUE(loader.next());
    EXPECT_TRUE(loader.next());
    for (int again = 0; again < 2; ++again) {
      try {
        loader.next();
        FAIL() << "no error";
      } catch (const Error& e) {
        EXPECT_TRUE(has(e.what(), "image 85 is broken")) << "the lowest of the batch";
      }
    }
  }
}

TEST(Loader, SkipsAndCountsUnreadableImages) {
  std::vector<int64_t> broken{5, 85};
  for (int64_t i = 40; i < 60; ++i) broken.push_back(i);
  for (int workers : {0, 3}) {
    LoaderOptions o = in_order(workers, 20);
    o.skip_errors = true;
    o.epochs = 2;
    o.mix = {.mixup = 1.0};
    Loader loader(std::make_shared<Faulty>(100, broken), augmenting(), o);
    for (int epoch = 0; epoch < 2; ++epoch) {
      std::vector<int64_t> sizes, seen;
      while (auto batch = loader.next()) {
        sizes.push_back(batch->size());
        EXPECT_EQ(batch->images.size(0), batch->size());
        EXPECT_EQ(batch->targets.size(0), batch->size());
        for (int64_t i = 0; i < batch->size(); ++i)
          EXPECT_EQ(batch->labels.data<int64_t>()[i], batch->indices[size_t(i)] % 5);
        seen.insert(seen.end(), batch->indices.begin(), batch->indices.end());
      }
      EXPECT_EQ(sizes, list(19, 20, 20, 19));
      for (int64_t i : broken) EXPECT_EQ(std::ranges::count(seen, i), 0);
    }
    EXPECT_EQ(loader.skipped().size(), 22u);
    EXPECT_TRUE(has(loader.skipped().at(85), "image 85"));
  }
}

TEST(Loader, SkippingIsForBadImagesOnly) {
  LoaderOptions o = in_order(2, 20);
  o.skip_errors = true;
  Loader loader(std::make_shared<Faulty>(100, std::vector<int64_t>{30}, ErrorKind::system), augmenting(), o);
  EXPECT_TRUE(loader.next());
  EXPECT_THROW(loader.next(), Error);
}

TEST(Loader, WorksAheadWithinItsBound) {
  auto set = std::make_shared<Faulty>(400, std::vector<int64_t>{});
  LoaderOptions o = in_order(2, 20);
  o.prefetch = 3;
  {
    Loader loader(set, augmenting(), o);
    for (int i = 0; i < 200 && set->calls < 60; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(set->calls, 60);
    EXPECT_TRUE(loader.next());
    for (int i = 0; i < 200 && set->calls < 80; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_EQ(set->calls, 80);
  }  // leaving with work under way joins the workers
  EXPECT_LE(set->calls, 100);
}

TEST(Loader, RefusesWhatDoesNotFit) {
  LoaderOptions o = options(0);
  o.classes = 4;
  EXPECT_THROW(Loader(images(10), augmenting(), o), Error);
  o.classes = 9;
  Loader loader(images(10), augmenting(), o);
  EXPECT_EQ(loader.next()->targets.shape(), (Shape{10, 9}));
  o = options(0);
  o.prefetch = 0;
  EXPECT_THROW(Loader(images(10), augmenting(), o), Error);
  o = options(0);
  o.device = cuda_device();
  if (!cuda_available()) {
    EXPECT_THROW(Loader(images(10), augmenting(), o), Error);
  }
}

// With a GPU: the same numbers arrive there. render_test.cpp has erasing, whose noise differs in last bits.
TEST(Loader, CudaBatchesEqualCpuBatches) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  TransformOptions t = augmenting().options();
  t.augment.erase = 0;
  Loader cpu(images(107), Transform(t), options(2));
  LoaderOptions o = options(2);
  o.device = cuda_device();
  Loader gpu(images(107), Transform(t), o);
  EXPECT_EQ(drain(gpu), drain(cpu));
  o.start = {1, 2};
  Loader resumed(images(107), Transform(t), o);
  EXPECT_EQ(resumed.state(), o.start);
  resumed.next();
  EXPECT_EQ(resumed.state(), (LoaderState{1, 3}));
}

}  // namespace
}  // namespace occam::testing
