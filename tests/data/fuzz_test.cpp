// Deterministic mutations of small valid files: a parser either throws Error{input} that names the file or
// returns something sound. Run under ASan and UBSan this is where memory errors show.
#include <gtest/gtest.h>

#include <functional>

#include "core/error.h"
#include "data/image/decode.h"
#include "data/sets/sets.h"
#include "tests/data/make_sets.h"

namespace occam::testing {
namespace {

/// One to eight changes: bits, bytes, 16-bit numbers, cuts, doubled and removed stretches.
std::vector<uint8_t> mutate(std::vector<uint8_t> bytes, Rng& rng) {
  for (int64_t change = 1 + rng.below(8); change > 0 && !bytes.empty(); --change) {
    auto size = int64_t(bytes.size());
    auto at = size_t(rng.bernoulli(0.5) ? rng.below(size) : rng.below(std::min<int64_t>(size, 64)));
    int64_t length = std::min<int64_t>(1 + rng.below(40), size - int64_t(at));
    switch (rng.below(7)) {
      case 0:
        bytes[at] ^= uint8_t(1u << rng.below(8));
        break;
      case 1:
        bytes[at] = uint8_t(rng.next_u32());
        break;
      case 2:
        bytes[at] = rng.bernoulli(0.5) ? 0xFF : 0;
        break;
      case 3:
        if (at + 1 < bytes.size()) bytes[at] = 0xFF, bytes[at + 1] = uint8_t(0xC0 + rng.below(64));
        break;
      case 4:
        bytes.resize(at + 1);
        break;
      case 5:
        bytes.erase(bytes.begin() + long(at), bytes.begin() + long(at) + length);
        break;
      default: {
        std::vector<uint8_t> piece(bytes.begin() + long(at), bytes.begin() + long(at) + length);
        bytes.insert(bytes.begin() + long(rng.below(size)), piece.begin(), piece.end());
      }
    }
  }
  return bytes;
}

/// Writes right checksums into every PNG chunk that can be found, so that mutations get past them.
void repair_checksums(std::vector<uint8_t>& png) {
  for (size_t at = 8; at + 12 <= png.size();) {
    size_t length =
        size_t(png[at]) << 24 | size_t(png[at + 1]) << 16 | size_t(png[at + 2]) << 8 | png[at + 3];
    if (length > png.size() - at - 12) return;
    auto crc = uint32_t(crc32(0, png.data() + at + 4, uInt(length + 4)));
    for (int k = 0; k < 4; ++k) png[at + 8 + length + size_t(k)] = uint8_t(crc >> (24 - 8 * k));
    at += length + 12;
  }
}

/// Calls `parse` on mutations of `bytes`; returns how many were refused.
int fuzz(const std::vector<uint8_t>& bytes, int rounds, uint64_t seed,
         const std::function<void(const std::vector<uint8_t>&)>& parse) {
  int refused = 0;
  for (int i = 0; i < rounds; ++i) {
    Rng rng(seed, "mutations", uint64_t(i));
    std::vector<uint8_t> mutant = mutate(bytes, rng);
    try {
      parse(mutant);
    } catch (const Error& e) {
      ++refused;
      EXPECT_EQ(e.kind(), ErrorKind::input) << e.what();
      EXPECT_NE(std::string(e.what()).find("the file"), std::string::npos) << e.what();
    }
  }
  return refused;
}

TEST(Fuzz, Jpeg) {
  std::vector<JpegDecoder> decoders{JpegDecoder::stb};
  if (has_libjpeg()) decoders.push_back(JpegDecoder::libjpeg);
  for (JpegDecoder decoder : decoders)
    for (const char* name :
         {"420.jpg", "444.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "restart.jpg"}) {
      int refused =
          fuzz(read_bytes(kGolden / "images" / name), 600, 1, [&](const std::vector<uint8_t>& bytes) {
            Image image = decode_image(bytes, "the file", {.jpeg = decoder, .max_pixels = 1 << 20});
            EXPECT_LE(image.width() * image.height(), 1 << 20);
          });
      EXPECT_GT(refused, 100) << name;
      EXPECT_LT(refused, 599) << name;
    }
}

TEST(Fuzz, Png) {
  for (const char* name : {"rgb.png", "grey.png", "rgba.png", "palette.png", "bits.png", "rgb16.png"}) {
    int decoded = 0;
    fuzz(read_bytes(kGolden / "images" / name), 600, 2, [&](std::vector<uint8_t> bytes) {
      repair_checksums(bytes);
      decode_image(bytes, "the file", {.max_pixels = 1 << 20});
      ++decoded;
    });
    EXPECT_GT(decoded, 2) << name;
    EXPECT_LT(decoded, 400) << name;
  }
}

TEST(Fuzz, Idx) {
  TempFolder tmp;
  std::string images = tmp / "the file", labels = tmp / "the file of labels";
  for (bool packed : {false, true}) {
    auto write = [&](const std::string& path, const std::vector<uint8_t>& bytes) {
      packed ? write_gz(path, bytes) : write_bytes(path, bytes);
    };
    auto open = [&] {
      DatasetPtr set = open_idx(images, labels, {"a", "b", "c"});
      for (int64_t i = 0; i < set->size(); ++i) set->get(i);
    };
    std::vector<uint8_t> good_images = idx_images(6, 5, 7), good_labels = idx_labels(6, 3);
    write(images, good_images);
    write(labels, good_labels);
    open();
    std::vector<uint8_t> raw_images = read_bytes(images), raw_labels = read_bytes(labels);
    EXPECT_GT(fuzz(raw_images, 400, 3,
                   [&](const std::vector<uint8_t>& bytes) {
                     write_bytes(images, bytes);
                     open();
                   }),
              100);
    write_bytes(images, raw_images);
    EXPECT_GT(fuzz(raw_labels, 400, 4,
                   [&](const std::vector<uint8_t>& bytes) {
                     write_bytes(labels, bytes);
                     open();
                   }),
              100);
  }
}

TEST(Fuzz, Cifar) {
  TempFolder tmp;
  std::string folder = tmp / "the file";
  write_bytes(folder + "/test_batch.bin", {});
  EXPECT_GT(fuzz(cifar_records(2, 1, 5), 400, 5,
                 [&](const std::vector<uint8_t>& bytes) {
                   write_bytes(folder + "/test_batch.bin", bytes);
                   DatasetPtr set = open_cifar10(folder, false);
                   for (int64_t i = 0; i < set->size(); ++i) EXPECT_LT(set->get(i).label, 10);
                 }),
            100);
}

}  // namespace
}  // namespace occam::testing
