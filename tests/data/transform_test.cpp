#include "data/transforms/transform.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "core/error.h"
#include "tests/data/golden.h"

namespace occam::testing {
namespace {

TransformOptions plain(int64_t size, int64_t channels) {
  TransformOptions o;
  o.size = size;
  o.channels = channels;
  o.mean.assign(size_t(channels), 0.0f);
  o.std.assign(size_t(channels), 1.0f);
  return o;
}

std::string text_of(const Image& image) { return {image.data(), image.data() + image.size()}; }

TEST(Transform, EvaluationEqualsTimm) {
  GoldenReader golden("transform.bin");
  std::istringstream header;
  int cases = 0;
  for (; golden.next(header); ++cases) {
    std::string kind;
    int64_t w, h, c, size, out;
    double crop_pct;
    header >> kind >> w >> h >> c >> size >> crop_pct >> out;
    SCOPED_TRACE(header.str());
    std::vector<float> expected = golden.read<float>(out * size * size);
    TransformOptions o = plain(size, out);
    o.crop_pct = crop_pct;
    o.mean = {0.485f, 0.456f, 0.406f};
    o.std = {0.229f, 0.224f, 0.225f};
    Transform transform(o);
    Rng rng;
    std::vector<float> values(static_cast<size_t>(transform.numel()));
    transform.apply(picture(w, h, c), rng, values.data());
    for (size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(values[i], expected[i], 1e-6f) << i;
  }
  EXPECT_EQ(cases, 4);
}

TEST(Transform, SizesRoundAsTorchvision) {
  EXPECT_EQ(resized_size(50, 37, 35), (Rect{0, 0, 47, 35}));  // 47.29 is cut
  EXPECT_EQ(resized_size(37, 50, 35), (Rect{0, 0, 35, 47}));
  EXPECT_EQ(resized_size(40, 40, 35), (Rect{0, 0, 35, 35}));
  EXPECT_EQ(centre_rect(10, 13, 5), (Rect{2, 4, 5, 5}));  // 2.5 rounds to 2, 4 stays
  EXPECT_EQ(centre_rect(12, 4, 5), (Rect{4, 0, 5, 5}));   // 3.5 rounds to 4; (5 - 4) / 2 = 0 rows above
  EXPECT_EQ(centre_rect(28, 28, 32), (Rect{-2, -2, 32, 32}));
}

TEST(Transform, WithoutFilterCutsOrPads) {
  TransformOptions o = plain(8, 1);
  o.filter.reset();
  Rng rng;
  EXPECT_EQ(Transform(o).pixels(picture(8, 8, 1), rng), picture(8, 8, 1));
  EXPECT_EQ(Transform(o).pixels(picture(11, 6, 1), rng), crop(picture(11, 6, 1), {2, -1, 8, 8}));
}

TEST(Transform, ChannelsFollowTheRule) {
  TransformOptions o = plain(16, 3);
  Rng rng;
  Image grey = picture(20, 31, 1);
  o.channels = 1;
  o.mean = o.std = {1.0f};
  Image one = Transform(o).pixels(grey, rng);
  EXPECT_EQ(Transform(plain(16, 3)).pixels(grey, rng), with_channels(one, 3));
  EXPECT_EQ(Transform(plain(16, 3)).pixels(with_channels(grey, 3), rng), with_channels(one, 3));
  EXPECT_EQ(Transform(o).pixels(picture(20, 31, 3), rng),
            Transform(o).pixels(with_channels(picture(20, 31, 3), 1), rng));
}

TEST(Transform, RandomResizedCutStaysInsideAndCoversItsRange) {
  Rng rng(1, "rrc");
  double least = 1, most = 0, flattest = 9, tallest = 0;
  for (int i = 0; i < 4000; ++i) {
    Rect r = random_resized_rect(100, 80, 0.08, 1.0, rng);
    ASSERT_TRUE(r.x >= 0 && r.y >= 0 && r.width >= 1 && r.height >= 1);
    ASSERT_TRUE(r.x + r.width <= 100 && r.y + r.height <= 80);
    double share = double(r.width * r.height) / 8000, ratio = double(r.width) / double(r.height);
    least = std::min(least, share);
    most = std::max(most, share);
    flattest = std::min(flattest, ratio);
    tallest = std::max(tallest, ratio);
  }
  EXPECT_LT(least, 0.09);
  EXPECT_GT(least, 0.07);
  EXPECT_GT(most, 0.95);
  EXPECT_NEAR(flattest, 0.75, 0.05);
  EXPECT_NEAR(tallest, 4.0 / 3, 0.05);
  // No cut fits a strip at full area: the fallback is the largest central part of an allowed ratio.
  EXPECT_EQ(random_resized_rect(300, 30, 1.0, 1.0, rng), (Rect{130, 0, 40, 30}));
  EXPECT_EQ(random_resized_rect(30, 300, 1.0, 1.0, rng), (Rect{0, 130, 30, 40}));
}

TEST(Transform, ShiftsFlipsAndErases) {
  TransformOptions o = plain(8, 1);
  o.filter.reset();
  o.augment.crop = CropMode::pad;
  o.augment.padding = 2;
  o.augment.flip = 0.5;
  Transform transform(o);
  Image image = picture(8, 8, 1);
  std::set<std::string> seen, allowed;
  for (int64_t y = -2; y <= 2; ++y)
    for (int64_t x = -2; x <= 2; ++x)
      for (bool flip : {false, true}) {
        Image part = crop(image, {x, y, 8, 8});
        if (flip) flip_horizontal(part);
        allowed.insert(text_of(part));
      }
  for (uint64_t i = 0; i < 1500; ++i) {
    Rng rng(11, "shift", i);
    Image part = transform.pixels(image, rng);
    seen.insert(text_of(part));
  }
  EXPECT_EQ(seen, allowed);

  o = plain(32, 3);
  o.augment.erase = 1;
  Transform erasing(o);
  Image flat(32, 32, 3);
  double sum = 0, squares = 0, erased = 0;
  for (uint64_t i = 0; i < 50; ++i) {
    Rng rng(11, "erase", i);
    std::vector<float> values(static_cast<size_t>(erasing.numel()));
    erasing.apply(flat, rng, values.data());
    int64_t changed = 0;
    for (float v : values) {
      changed += v != 0;
      sum += v;
      squares += double(v) * v;
    }
    EXPECT_GT(changed, 3 * 1024 / 60);
    EXPECT_LT(changed, 3 * 1024 * 0.36);
    erased += double(changed);
  }
  EXPECT_NEAR(sum / erased, 0, 0.05);
  EXPECT_NEAR(squares / erased, 1, 0.05);
}

TEST(Transform, RefusesBadOptions) {
  auto refused = [](auto change) {
    TransformOptions o = plain(8, 3);
    change(o);
    EXPECT_THROW(Transform{o}, Error);
  };
  refused([](auto& o) { o.size = 0; });
  refused([](auto& o) { o.channels = 2; });
  refused([](auto& o) { o.crop_pct = 0; });
  refused([](auto& o) { o.crop_pct = 1.5; });
  refused([](auto& o) { o.mean.pop_back(); });
  refused([](auto& o) { o.std[1] = 0; });
  refused([](auto& o) { o.augment.scale_min = 2; });
}

}  // namespace
}  // namespace occam::testing
