#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "data/image/decode.h"
#include "data/image/resize.h"
#include "tests/data/golden.h"

namespace occam::testing {
namespace {

int largest_difference(const Image& a, const std::vector<uint8_t>& b) {
  EXPECT_EQ(a.size(), int64_t(b.size()));
  int worst = 0;
  for (size_t i = 0; i < b.size(); ++i) worst = std::max(worst, std::abs(int(a.data()[i]) - int(b[i])));
  return worst;
}

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

TEST(Image, RefusesSizesThatCannotBe) {
  EXPECT_THROW(Image(0, 3, 1), Error);
  EXPECT_THROW(Image(3, -1, 3), Error);
  EXPECT_THROW(Image(3, 3, 4), Error);
  EXPECT_THROW(Image(int64_t(1) << 40, int64_t(1) << 40, 3), Error);
}

TEST(Image, CropPadsWithZerosAndFlipMirrors) {
  Image image = picture(5, 4, 3);
  Image part = crop(image, {-2, 1, 9, 5});
  EXPECT_EQ(part.width(), 9);
  for (int64_t y = 0; y < 5; ++y)
    for (int64_t x = 0; x < 9; ++x)
      for (int64_t c = 0; c < 3; ++c) {
        bool inside = x >= 2 && x < 7 && y < 3;
        EXPECT_EQ(part.row(y)[x * 3 + c], inside ? image.row(y + 1)[(x - 2) * 3 + c] : 0);
      }
  EXPECT_EQ(crop(image, {10, 10, 2, 2}), Image(2, 2, 3));
  Image mirrored = image;
  flip_horizontal(mirrored);
  EXPECT_EQ(mirrored.row(2)[3 * 0 + 1], image.row(2)[3 * 4 + 1]);
  flip_horizontal(mirrored);
  EXPECT_EQ(mirrored, image);
}

TEST(Image, ResizeAndLumaEqualPillow) {
  GoldenReader golden("resize.bin");
  std::istringstream header;
  int cases = 0;
  for (; golden.next(header); ++cases) {
    std::string filter;
    int64_t w, h, c, to_w, to_h, to_c;
    header >> filter >> w >> h >> c >> to_w >> to_h >> to_c;
    SCOPED_TRACE(header.str());
    std::vector<uint8_t> expected = golden.read<uint8_t>(to_w * to_h * to_c);
    if (filter == "luma") {
      EXPECT_EQ(largest_difference(with_channels(picture(w, h, c), 1), expected), 0);
      continue;
    }
    Filter kind = filter == "bicubic" ? Filter::bicubic : Filter::bilinear;
    EXPECT_EQ(largest_difference(resize(picture(w, h, c), to_w, to_h, kind), expected), 0);
  }
  EXPECT_EQ(cases, 23);
}

TEST(Image, ResizeWindowEqualsCropOfWholeResult) {
  for (auto [w, h] : {std::pair{19, 40}, {50, 33}, {19, 33}, {50, 40}, {45, 22}, {60, 23}}) {
    Image whole = resize(picture(50, 33, 3), w, h, Filter::bicubic);
    Rect window{3, 5, 11, 17};
    EXPECT_EQ(resize(picture(50, 33, 3), w, h, Filter::bicubic, window), crop(whole, window))
        << w << " x " << h;
  }
  EXPECT_THROW(resize(picture(5, 5, 1), 8, 8, Filter::bicubic, {4, 0, 5, 8}), Error);
  EXPECT_THROW(resize(Image(), 8, 8, Filter::bicubic), Error);
}

TEST(Image, ResizeOfExtremeShapesKeepsConstants) {
  Image flat(3000, 1, 1);
  std::fill_n(flat.data(), flat.size(), uint8_t(77));
  for (auto [w, h] : {std::pair{1, 1}, {1, 500}, {4000, 2}, {2999, 1}}) {
    Image out = resize(flat, w, h, Filter::bicubic);
    for (int64_t i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], 77);
  }
}

class Decoders : public ::testing::TestWithParam<JpegDecoder> {
 protected:
  void SetUp() override {
    if (GetParam() == JpegDecoder::libjpeg && !has_libjpeg()) GTEST_SKIP() << "built without libjpeg-turbo";
    options.jpeg = GetParam();
  }
  DecodeOptions options;
};
INSTANTIATE_TEST_SUITE_P(Image, Decoders, ::testing::Values(JpegDecoder::stb, JpegDecoder::libjpeg),
                         [](const auto& info) { return info.param == JpegDecoder::stb ? "stb" : "libjpeg"; });

TEST_P(Decoders, PixelsEqualPillow) {
  GoldenReader golden("images.bin");
  std::istringstream header;
  int cases = 0;
  for (; golden.next(header); ++cases) {
    std::string name;
    int64_t w, h, c;
    header >> name >> w >> h >> c;
    SCOPED_TRACE(name);
    std::vector<uint8_t> expected = golden.read<uint8_t>(w * h * c);
    std::string path = (kGolden / "images" / name).string();
    int64_t warnings = -1;
    Image image = decode_image_file(path, options, &warnings);
    EXPECT_EQ(warnings, 0);
    ASSERT_EQ(image.width(), w);
    ASSERT_EQ(image.height(), h);
    ASSERT_EQ(image.channels(), c);
    std::vector<uint8_t> bytes = read_bytes(path);
    ImageInfo info = image_info(bytes, name);
    EXPECT_EQ(info.width, w);
    EXPECT_EQ(info.channels, c);
    EXPECT_EQ(info.is_jpeg, name.ends_with("jpg"));
    if (!info.is_jpeg || options.jpeg == JpegDecoder::libjpeg) {
      // libjpeg-turbo is what Pillow uses; releases of it may round apart.
      EXPECT_LE(largest_difference(image, expected), info.is_jpeg ? 1 : 0);
      continue;
    }
    // stb_image rounds its inverse DCT differently and weighs the last column of subsampled chroma wrongly.
    double sum = 0;
    for (size_t i = 0; i < expected.size(); ++i) sum += std::abs(int(image.data()[i]) - int(expected[i]));
    EXPECT_LT(sum / double(expected.size()), 2.0);
  }
  EXPECT_EQ(cases, 15);
}

TEST_P(Decoders, EveryTruncationIsAnErrorThatNamesTheFile) {
  for (const char* name : {"420.jpg", "progressive.jpg", "rgb.png", "palette.png"}) {
    std::vector<uint8_t> bytes = read_bytes(kGolden / "images" / name);
    for (size_t length = 0; length + 2 < bytes.size(); length += 7) {
      std::string text = error_of([&] { decode_image({bytes.data(), length}, "some/file", options); });
      EXPECT_TRUE(has(text, "some/file")) << name << " cut to " << length;
    }
  }
}

TEST_P(Decoders, RefusesWhatItShould) {
  auto text = [&](std::vector<uint8_t> bytes, DecodeOptions o) {
    return error_of([&] { decode_image(bytes, "f", o); });
  };
  std::vector<uint8_t> jpeg = read_bytes(kGolden / "images/444.jpg"),
                       png = read_bytes(kGolden / "images/rgb.png");
  EXPECT_TRUE(has(text({}, options), "empty"));
  EXPECT_TRUE(has(text({'G', 'I', 'F', '8', '9', 'a'}, options), "neither a JPEG nor a PNG"));
  DecodeOptions small = options;
  small.max_pixels = 24 * 17 - 1;
  EXPECT_TRUE(has(text(jpeg, small), "data.max_pixels"));
  EXPECT_TRUE(has(text(png, small), "data.max_pixels"));
  small.max_pixels = 24 * 17;
  EXPECT_NO_THROW(decode_image(jpeg, "f", small));

  std::vector<uint8_t> flipped = png;
  flipped[flipped.size() / 2] ^= 1;
  EXPECT_TRUE(has(text(flipped, options), "checksum"));
  // A header that states 13000 x 13000 pixels over a few hundred bytes: refused before memory is asked for.
  size_t sof = 0;
  while (!(jpeg[sof] == 0xFF && jpeg[sof + 1] == 0xC0)) ++sof;
  std::vector<uint8_t> liar = jpeg;
  liar[sof + 5] = liar[sof + 7] = 13000 >> 8;
  EXPECT_TRUE(has(text(liar, options), "cannot hold"));
  liar[sof + 5] = liar[sof + 7] = 0xFF;
  EXPECT_TRUE(has(text(liar, options), "data.max_pixels"));
  std::vector<uint8_t> deep = jpeg;
  deep[sof + 4] = 12;
  EXPECT_TRUE(has(text(deep, options), "12-bit"));
}

// stb_image reads the memory of tables that no segment filled; what lay there before must not show.
TEST(Image, StbWithoutHuffmanTablesIsDeterministic) {
  std::vector<uint8_t> jpeg = read_bytes(kGolden / "images/444.jpg"), bare;
  for (size_t i = 0; i < jpeg.size(); ++i) {
    while (i + 3 < jpeg.size() && jpeg[i] == 0xFF && jpeg[i + 1] == 0xC4)
      i += 2 + size_t(jpeg[i + 2]) * 256 + jpeg[i + 3];
    bare.push_back(jpeg[i]);
  }
  ASSERT_LT(bare.size() + 100, jpeg.size());
  auto outcome = [&](uint8_t dirt) {
    std::vector<std::vector<uint8_t>> blocks;
    for (size_t bytes = 64; bytes < 100000; bytes += 64) blocks.emplace_back(bytes, dirt);
    blocks.clear();
    try {
      Image image = decode_image(bare, "f", {.jpeg = JpegDecoder::stb});
      return std::string(image.data(), image.data() + image.size());
    } catch (const Error& e) {
      return std::string(e.what());
    }
  };
  std::string first = outcome(0xFF);
  EXPECT_EQ(outcome(0), first);
  EXPECT_EQ(outcome(0x55), first);
}

TEST(Image, MissingFileIsAnInputError) {
  EXPECT_TRUE(has(error_of([] { decode_image_file("/nowhere/x.png"); }), "/nowhere/x.png"));
}

// The pack of odd, hostile and broken files: nothing crashes or takes seconds, every error names the file,
// and what both reference decoders accept is decoded, but for the kinds listed here.
TEST_P(Decoders, TrickyImages) {
  std::filesystem::path root = OCCAM_SOURCE_DIR "/../shared/data/tricky-images";
  std::ifstream manifest(root / "MANIFEST.tsv");
  if (!manifest) GTEST_SKIP() << root << " is not here";
  bool stb = GetParam() == JpegDecoder::stb;
  std::string line;
  std::getline(manifest, line);
  int decoded = 0, refused = 0;
  while (std::getline(manifest, line)) {
    std::vector<std::string> cells;
    std::istringstream row(line);
    for (std::string cell; std::getline(row, cell, '\t');) cells.push_back(cell);
    cells.resize(13);
    const std::string &path = cells[0], &kind = cells[3], &libjpeg = cells[4], &pillow = cells[5];
    SCOPED_TRACE(path);
    Image image;
    std::string text;
    try {
      image = decode_image_file((root / path).string(), options);
      ++decoded;
    } catch (const Error& e) {
      text = e.what();
      ++refused;
      EXPECT_EQ(e.kind(), ErrorKind::input);
      EXPECT_TRUE(has(text, path));
    }
    if (kind == "other" || pillow != "ok" || (kind == "jpeg" && libjpeg != "ok")) continue;
    if (image.empty()) {
      // Pillow lets PNG files with wrong checksums, missing ends and bad palettes pass; here they are
      // corrupt.
      bool stricter_png =
          kind == "png" &&
          (path.starts_with("generated/malformed") || path.ends_with("xcsn0g01.png") ||
           path.ends_with("broken_data_stream.png") || path.ends_with("truncated_end_chunk.png"));
      bool stb_limit = stb && (text.find("arithmetic") != text.npos || path.ends_with("dnl-marker.jpg") ||
                               path.ends_with("no_dht.jpg") || path.ends_with("bad-comment-length.jpeg"));
      EXPECT_TRUE(stricter_png || stb_limit) << text;
      continue;
    }
    EXPECT_EQ(std::to_string(image.width()), cells[6]);
    EXPECT_EQ(std::to_string(image.height()), cells[7]);
    std::istringstream means(cells[8]);
    std::string cell;
    for (int64_t c = 0; std::getline(means, cell, ','); ++c) {
      double sum = 0;
      for (int64_t i = c % image.channels(); i < image.size(); i += image.channels()) sum += image.data()[i];
      double mean = sum / double(image.width() * image.height());
      // stb_image interpolates subsampled chroma differently; on pictures of a few pixels that moves the
      // mean.
      double allowed = !stb ? 0.06 : image.width() * image.height() < 100 ? 4 : 1.5;
      EXPECT_NEAR(mean, std::stod(cell), allowed) << "channel " << c;
    }
  }
  EXPECT_EQ(decoded + refused, 659);
  EXPECT_GT(decoded, 340);
}

}  // namespace
}  // namespace occam::testing
