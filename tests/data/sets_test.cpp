#include "data/sets/sets.h"

#include <gtest/gtest.h>

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
    EXPECT_EQ(e.kind(), ErrorKind::input);
    return e.what();
  }
  return "no error";
}

const std::vector<std::string> kThree{"a", "b", "c"};

TEST(Sets, IdxPlainAndGzip) {
  TempFolder tmp;
  std::vector<uint8_t> images = idx_images(5, 3, 4), labels = idx_labels(5, 3);
  write_bytes(tmp / "i", images);
  write_gz(tmp / "i.gz", images);
  write_gz(tmp / "l.gz", labels);
  for (const char* name : {"i", "i.gz"}) {
    DatasetPtr set = open_idx(tmp / name, tmp / "l.gz", kThree);
    ASSERT_EQ(set->size(), 5);
    EXPECT_EQ(set->channels(), 1);
    Sample sample = set->get(3);
    EXPECT_EQ(sample.image.width(), 4);
    EXPECT_EQ(sample.image.height(), 3);
    EXPECT_EQ(sample.label, 21 % 3);
    for (int64_t k = 0; k < 12; ++k) EXPECT_EQ(sample.image.data()[k], images[size_t(16 + 3 * 12 + k)]);
    EXPECT_EQ(set->path(3), (tmp / name).string() + "[3]");
  }
}

TEST(Sets, IdxRefusesDamage) {
  TempFolder tmp;
  std::vector<uint8_t> images = idx_images(5, 3, 4), labels = idx_labels(5, 3);
  auto text = [&](std::vector<uint8_t> i, std::vector<uint8_t> l) {
    write_bytes(tmp / "i", i);
    write_bytes(tmp / "l", l);
    return error_of([&] { open_idx(tmp / "i", tmp / "l", kThree); });
  };
  EXPECT_EQ(text(images, labels), "no error");
  auto changed = [](std::vector<uint8_t> bytes, size_t at, uint8_t value) {
    bytes[at] = value;
    return bytes;
  };
  EXPECT_TRUE(has(text(changed(images, 2, 9), labels), "magic number 0x00000903"));
  EXPECT_TRUE(has(text(labels, labels), "magic number"));
  EXPECT_TRUE(has(text(changed(images, 7, 6), labels), "ends inside its data"));
  EXPECT_TRUE(has(text(changed(images, 7, 4), labels), "more bytes than its header"));
  EXPECT_TRUE(has(text(changed(images, 4, 0xFF), labels), "size 0 of the header"));
  EXPECT_TRUE(has(text(changed(images, 11, 0), labels), "size 1 of the header is 0"));
  EXPECT_TRUE(has(text(images, changed(labels, 9, 3)), "label 1 is 3, expected 0 to 2"));
  EXPECT_TRUE(has(text(images, idx_labels(4, 3)), "5 images"));
  EXPECT_TRUE(has(text({images.begin(), images.begin() + 10}, labels), "ends inside its header"));
  // 2^28 images of 4096 x 4096: refused by the sizes alone.
  std::vector<uint8_t> huge;
  for (uint32_t v : {0x803u, 1u << 28, 4096u, 4096u}) put32(huge, v);
  EXPECT_TRUE(has(text(huge, labels), "bytes in all"));

  write_gz(tmp / "i", images);
  std::vector<uint8_t> packed = read_bytes(tmp / "i");
  EXPECT_TRUE(has(text({packed.begin(), packed.end() - 12}, labels), (tmp / "i").string()));
  packed[packed.size() - 6] ^= 0xFF;
  EXPECT_TRUE(has(text(packed, labels), "compressed data are corrupt"));
  EXPECT_TRUE(has(error_of([&] { open_idx("/nowhere/i", tmp / "l", kThree); }), "/nowhere/i"));
}

TEST(Sets, FashionMnist) {
  EXPECT_TRUE(has(error_of([] { open_fashion_mnist("/nowhere", true); }), "/nowhere: holds neither"));
  const std::string root = "/usr/share/datasets/fashion-mnist";
  if (!fs::exists(root)) GTEST_SKIP() << root << " is not here";
  DatasetPtr test = open_fashion_mnist(root, false);
  EXPECT_EQ(test->size(), 10000);
  EXPECT_EQ(test->classes(), 10);
  std::vector<int64_t> count(10);
  for (int64_t i = 0; i < test->size(); ++i) ++count[size_t(test->label(i))];
  EXPECT_EQ(count, std::vector<int64_t>(10, 1000));
  EXPECT_EQ(test->label(0), 9);  // the first test image is an ankle boot
  EXPECT_EQ(test->class_names()[9], "Ankle boot");
}

TEST(Sets, Cifar10) {
  TempFolder tmp;
  std::vector<uint8_t> first = cifar_records(3, 1, 1), second = cifar_records(2, 1, 2);
  write_bytes(tmp / "data_batch_1.bin", first);
  write_bytes(tmp / "data_batch_2.bin", second);
  DatasetPtr set = open_cifar10(tmp.path(), true);
  ASSERT_EQ(set->size(), 5);
  EXPECT_EQ(set->class_names()[7], "7");
  EXPECT_EQ(set->label(2), 6);
  EXPECT_EQ(set->label(4), 3);
  Sample sample = set->get(4);
  const uint8_t* planes = second.data() + 3073 + 1;
  for (int64_t i : {0, 5, 1023})
    for (int64_t c = 0; c < 3; ++c) EXPECT_EQ(sample.image.data()[3 * i + c], planes[c * 1024 + i]);
  EXPECT_TRUE(has(set->path(4), "data_batch_2.bin[1]"));
  EXPECT_TRUE(has(error_of([&] { open_cifar10(tmp.path(), false); }), "no test_batch.bin"));

  write_bytes(tmp / "batches.meta.txt", {});
  std::ofstream(tmp / "batches.meta.txt")
      << "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
  EXPECT_EQ(open_cifar10(tmp.path(), true)->class_names()[9], "truck");
  std::ofstream(tmp / "batches.meta.txt") << "airplane\n";
  EXPECT_TRUE(has(error_of([&] { open_cifar10(tmp.path(), true); }), "1 class names, expected 10"));
  fs::remove(tmp / "batches.meta.txt");

  write_bytes(tmp / "data_batch_4.bin", second);
  EXPECT_TRUE(has(error_of([&] { open_cifar10(tmp.path(), true); }), "not every batch before it"));
  fs::remove(tmp / "data_batch_4.bin");
  second[3073] = 10;
  write_bytes(tmp / "data_batch_2.bin", second);
  EXPECT_TRUE(has(error_of([&] { open_cifar10(tmp.path(), true); }), "label of record 1 is 10"));
  second.pop_back();
  write_bytes(tmp / "data_batch_2.bin", second);
  EXPECT_TRUE(has(error_of([&] { open_cifar10(tmp.path(), true); }), "6145 bytes are not a whole number"));
  write_bytes(tmp / "data_batch_2.bin", {});
  EXPECT_TRUE(has(error_of([&] { open_cifar10(tmp.path(), true); }), "data_batch_2.bin"));
}

TEST(Sets, Cifar100TakesTheFineLabelAndTheSubfolder) {
  TempFolder tmp;
  write_bytes(tmp / "cifar-100-binary/train.bin", cifar_records(4, 2, 1));
  DatasetPtr set = open_cifar100(tmp.path(), true);
  EXPECT_EQ(set->classes(), 100);
  EXPECT_EQ(set->label(3), 10);
  EXPECT_EQ(set->get(3).label, 10);
}

TEST(Sets, FolderIsOrderedByBytes) {
  TempFolder tmp;
  // '-' and ' ' sort before '/', so the order of paths is not that of (class, name).
  for (const char* path : {"b/2.PNG", "b/10.png", "a/x.png", "a-1/y.png", "a/deep/er/z.Png", "Z/q.png"})
    copy_image("rgb.png", tmp / path);
  copy_image("grey.jpg", tmp / "a/w.JPEG");
  write_bytes(tmp / "a/notes.txt", {1});
  write_bytes(tmp / "a/._x.png", {1});
  write_bytes(tmp / ".git/x.png", {1});
  DatasetPtr set = open_image_folder(tmp.path(), {});
  EXPECT_EQ(set->class_names(), list("Z", "a", "a-1", "b"));
  std::vector<std::string> paths;
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < set->size(); ++i) {
    paths.push_back(fs::relative(set->path(i), tmp.path()).string());
    labels.push_back(set->label(i));
  }
  EXPECT_EQ(paths,
            list("Z/q.png", "a-1/y.png", "a/deep/er/z.Png", "a/w.JPEG", "a/x.png", "b/10.png", "b/2.PNG"));
  EXPECT_EQ(labels, list(0, 2, 1, 1, 1, 3, 3));
  EXPECT_EQ(set->get(3).image.channels(), 1);
  EXPECT_EQ(set->get(4).image.channels(), 3);
}

TEST(Sets, FolderErrorsNameTheFolderOrFile) {
  TempFolder tmp;
  EXPECT_TRUE(has(error_of([&] { open_image_folder(tmp / "none", {}); }), "none: no such folder"));
  EXPECT_TRUE(has(error_of([&] { open_image_folder(tmp.path(), {}); }), "no class folders"));
  fs::create_directories(tmp / "empty");
  copy_image("rgb.png", tmp / "full/1.png");
  EXPECT_TRUE(has(error_of([&] { open_image_folder(tmp.path(), {}); }), "empty: class folder without"));
  fs::remove(tmp / "empty");
  write_bytes(tmp / "full/2.jpg", {0xFF, 0xD8, 0xFF, 0xD9});
  DatasetPtr set = open_image_folder(tmp.path(), {});
  EXPECT_NO_THROW(set->get(0));
  EXPECT_TRUE(has(error_of([&] { set->get(1); }), "full/2.jpg"));
  fs::create_directory_symlink(tmp / "full", tmp / "full/loop");
  EXPECT_TRUE(has(error_of([&] { open_image_folder(tmp.path(), {}); }), "loop"));
}

// Nearest class mean on raw pixels, learnt from one split, must classify the other.
TEST(Sets, SyntheticIsLearnableAndDeterministic) {
  for (int64_t channels : {1, 3}) {
    SyntheticOptions options{.images = 200, .classes = 10, .size = 16, .channels = channels, .seed = 4};
    DatasetPtr train = open_synthetic(options);
    options.split = "test";
    DatasetPtr test = open_synthetic(options);
    EXPECT_EQ(train->get(17).image, train->get(17).image);
    EXPECT_NE(train->get(17).image, test->get(17).image);
    auto numel = size_t(16 * 16 * channels);
    std::vector<std::vector<double>> mean(10, std::vector<double>(numel));
    for (int64_t i = 0; i < train->size(); ++i) {
      Sample s = train->get(i);
      for (size_t k = 0; k < numel; ++k) mean[size_t(s.label)][k] += s.image.data()[k] / 20.0;
    }
    int right = 0;
    for (int64_t i = 0; i < test->size(); ++i) {
      Sample s = test->get(i);
      size_t best = 0;
      double least = 1e30;
      for (size_t c = 0; c < 10; ++c) {
        double d = 0;
        for (size_t k = 0; k < numel; ++k)
          d += (s.image.data()[k] - mean[c][k]) * (s.image.data()[k] - mean[c][k]);
        if (d < least) least = d, best = c;
      }
      right += int64_t(best) == s.label;
    }
    EXPECT_GT(right, 190);
  }
}

}  // namespace
}  // namespace occam::testing
