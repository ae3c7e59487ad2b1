// Images and data sets that are damaged, missing or not what they should be.
#include <nlohmann/json.hpp>

#include "core/io/json.h"
#include "core/report/png.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

std::string png(int shade) { return encode_png(std::vector<uint8_t>(8 * 8 * 3, uint8_t(shade)), 8, 8, 3); }

class WrongImages : public AppFixture, public testing::WithParamInterface<AppCase> {
 protected:
  /// train/ and val/ with three classes of four images, and a finished run in x.
  void SetUp() override {
    for (const char* split : {"train", "val"})
      for (const char* name : {"a", "b", "c"}) {
        fs::create_directories(folder_ / "images" / split / name);
        for (int i = 0; i < 4; ++i)
          write_bytes(folder_ / "images" / split / name / (std::to_string(i) + ".png"),
                      png(20 * i + name[0]));
      }
    arguments_ = tiny_run(GetParam());
    std::erase_if(arguments_, [](const std::string& word) { return word.starts_with("data."); });
    arguments_ = with(arguments_, {"data.name=folder", "data.root=images", "data.image_size=8",
                                   "data.workers=1", "out.dir=x"});
    expect_success(run(GetParam().name, arguments_));
    arguments_.push_back("out.overwrite=true");
  }
  /// The same file in both splits, whichever the app reads.
  void put(const std::string& name, const std::string& bytes) {
    for (const char* split : {"train", "val"}) {
      fs::create_directories((folder_ / "images" / split / name).parent_path());
      write_bytes(folder_ / "images" / split / name, bytes);
    }
  }
  void expect_refused(const Words& arguments, const Words& parts) {
    auto before = snapshot(folder_.path());
    expect_failure(GetParam().name, run(GetParam().name, arguments, {.seconds = 20}), 2, parts);
    EXPECT_TRUE(snapshot(folder_.path()) == before) << "files were made or changed";
  }

  Words arguments_;
};
INSTANTIATE_TEST_SUITE_P(Apps, WrongImages, testing::ValuesIn(app_cases()), case_name);

class WrongTrainingImages : public WrongImages {};
INSTANTIATE_TEST_SUITE_P(Train, WrongTrainingImages, testing::Values(app_cases().front()), case_name);

TEST_P(WrongImages, StopTheRunWithTheirPathOrAreSkippedAndCounted) {
  const std::string whole = png(7);
  std::string flipped = whole;
  flipped[whole.size() / 2] = char(flipped[whole.size() / 2] ^ 0x40);
  struct Damage {
    const char* name;
    std::string file, bytes;
  };
  for (const Damage& d :
       std::vector<Damage>{{"empty", "b/wrong.png", ""},
                           {"cut short", "b/wrong.png", whole.substr(0, whole.size() / 2)},
                           {"a bit flipped", "b/wrong.png", flipped},
                           {"a text", "b/wrong.png", "not an image"},
                           {"JPEG of three bytes", "b/wrong.jpg", "\xff\xd8\xff"},
                           {"PNG of 2^31 pixels a side", "b/wrong.png",
                            whole.substr(0, 16) + "\x7f\xff\xff\xff\x7f\xff\xff\xff" + whole.substr(24)}}) {
    SCOPED_TRACE(d.name);
    put(d.file, d.bytes);
    expect_refused(arguments_, {d.file, "data.on_error=skip"});
    ProcessResult skipped =
        run(GetParam().name, with(arguments_, {"data.on_error=skip", "out.dir=y", "out.overwrite=true"}));
    expect_success(skipped);
    EXPECT_NE(skipped.err.find(d.file), std::string::npos) << skipped.err;
    EXPECT_NE(skipped.err.find("left out (data.on_error=skip)"), std::string::npos) << skipped.err;
    // Some read both splits.
    int64_t count = Json::parse(read_bytes(folder_ / "y/summary.json"))["skipped_images"];
    EXPECT_TRUE(count == 1 || (count == 2 && GetParam().resumes)) << count;
    fs::remove_all(folder_ / "images/train" / d.file);
    fs::remove_all(folder_ / "images/val" / d.file);
  }
}

TEST_P(WrongImages, AllOfThem) {
  for (const char* name : {"a", "b", "c"})
    for (int i = 0; i < 4; ++i) put(name + ("/" + std::to_string(i)) + ".png", "not an image");
  expect_refused(with(arguments_, {"data.on_error=skip"}), {"could be ", "images/", "0.png"});
}

TEST_P(WrongTrainingImages, ThatFillAWholeBatchDoNotHoldTheRunUp) {
  put("b/wrong.png", "not an image");
  ProcessResult result = run(
      "train", with(arguments_, {"train.batch=1", "train.epochs=2", "data.on_error=skip"}), {.seconds = 20});
  expect_success(result);
  EXPECT_EQ(Json::parse(read_bytes(folder_ / "x/summary.json"))["steps"], 2 * 12);
}

TEST_P(WrongImages, InAFolderThatIsNotAsItShouldBe) {
  fs::create_directories(folder_ / "images/train/d");
  fs::create_directories(folder_ / "images/val/d");
  expect_refused(arguments_, {"images/", "/d: class folder without", "remove it or fill it"});
  put("d/0.png", png(1));
  if (GetParam().needs_checkpoint && GetParam().uses_labels)
    expect_refused(arguments_, {"4 classes", "3 outputs", "model.classes"});
  for (const char* split : {"train", "val"}) fs::remove_all(folder_ / "images" / split);
  expect_refused(arguments_, {"images: holds no class folders"});
  expect_refused(with(arguments_, {"data.root=nowhere"}), {"nowhere: no such folder", "data.root"});
  expect_refused(with(arguments_, {"data.root=model.png"}), {"model.png: no such folder", "data.root"});
}

TEST_P(WrongImages, InABinarySetThatIsNotThere) {
  fs::create_directories(folder_ / "cifar");
  expect_refused(with(arguments_, {"data.name=cifar10", "data.root=cifar"}), {"cifar", "_batch"});
}

TEST_P(WrongTrainingImages, OfMoreClassesThanTheTestImages) {
  fs::create_directories(folder_ / "images/train/d");
  write_bytes(folder_ / "images/train/d/0.png", png(1));
  if (GetParam().name == "train")
    expect_refused(arguments_, {"images", "4 training classes but 3 test classes"});
}

}  // namespace
}  // namespace occam
