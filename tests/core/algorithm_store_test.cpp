// Where measured choices come from, and that a checkpoint's come first. Needs no GPU.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/choices.h"

#if OCCAM_CUDA
#include <cstdlib>

#include "core/cuda/algorithm_store.h"
#include "tests/core/temp_folder.h"

namespace occam::cuda {
namespace {

using Choice = AlgorithmStore::Choice;

class AlgorithmStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { setenv("OCCAM_CACHE", folder.path().c_str(), 1); }
  void TearDown() override { unsetenv("OCCAM_CACHE"); }
  static Choice choice(uint64_t n) { return {{n, n + 1, 2, 3, 4, 5, 6, ~n}, n << 20}; }
  static void expect(AlgorithmStore& store, const char* problem, uint64_t n) {
    std::optional<Choice> found = store.find(problem);
    ASSERT_TRUE(found) << problem;
    EXPECT_EQ(found->words, choice(n).words) << problem;
    EXPECT_EQ(found->workspace, choice(n).workspace) << problem;
  }
  std::string file() const { return read_bytes(folder / "gemm-a.json"); }
  TempFolder folder;
};

TEST_F(AlgorithmStoreTest, TheFileIsSharedAndWhatIsUsedIsTold) {
  AlgorithmStore one("gemm-a"), two("gemm-a");
  EXPECT_FALSE(one.find("p"));
  one.put("p", choice(1));
  two.put("q", choice(2));
  AlgorithmStore later("gemm-a");
  expect(later, "q", 2);
  const Json used = later.used();
  EXPECT_EQ(used["algorithms"].size(), 1u) << "p was not asked for: " << used.dump();
  EXPECT_TRUE(used["algorithms"].contains("q"));
  expect(later, "p", 1);
  EXPECT_FALSE(AlgorithmStore("gemm-b").find("p"));
}

TEST_F(AlgorithmStoreTest, AnEarlierRunsChoicesComeFirstAndLeaveTheFileAlone) {
  AlgorithmStore before("gemm-a");
  before.put("p", choice(1));
  before.put("q", choice(2));
  const Json kept = parse_json(before.used().dump(), "state");
  AlgorithmStore("gemm-a").put("p", choice(7));  // measured anew meanwhile
  const std::string bytes = file();

  AlgorithmStore resumed("gemm-a");
  EXPECT_TRUE(resumed.pin(kept));
  expect(resumed, "p", 1);
  EXPECT_EQ(file(), bytes);
  EXPECT_EQ(resumed.used(), kept) << "q waits for its turn";
  resumed.put("q", choice(3));  // the library did not take the old one
  expect(resumed, "q", 3);
  expect(resumed, "p", 1);
  AlgorithmStore another("gemm-a");
  expect(another, "p", 7);
  expect(another, "q", 3);
}

TEST_F(AlgorithmStoreTest, ChoicesOfAnotherDeviceAreRefused) {
  AlgorithmStore before("gemm-a"), other("gemm-b");
  before.put("p", choice(1));
  EXPECT_FALSE(other.pin(before.used()));
  EXPECT_FALSE(other.find("p"));
  EXPECT_THROW(other.pin(Json::object()), Json::exception);
  EXPECT_THROW(other.pin({{"of", "gemm-b"}, {"algorithms", {{"p", {{"algorithm", {1, 2}}}}}}}),
               Json::exception);
}

TEST_F(AlgorithmStoreTest, ADamagedFileCostsNewMeasurementsOnly) {
  AlgorithmStore("gemm-a").put("p", choice(1));
  const std::string whole = file();
  for (const std::string& bytes :
       {std::string("{"), std::string("[]"), std::string("{\"p\": {\"algorithm\": [1]}}")}) {
    write_bytes(folder / "gemm-a.json", bytes);
    AlgorithmStore store("gemm-a");
    EXPECT_FALSE(store.find("p")) << bytes;
    store.put("p", choice(1));
    EXPECT_EQ(file(), whole);
  }
}

}  // namespace
}  // namespace occam::cuda
#endif

namespace occam {
namespace {

TEST(Choices, ACpuMakesNone) {
  EXPECT_TRUE(measured_choices(kCPU).is_null());
  EXPECT_TRUE(restore_choices(kCPU, nullptr));
  EXPECT_FALSE(restore_choices(kCPU, Json{{"of", "gemm-a"}, {"algorithms", Json::object()}}));
}

}  // namespace
}  // namespace occam
