// What train tells about its own speed.
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/io/json.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace {

class Train : public AppFixture {};

Words training() { return tiny_data() + tiny_model() + Words{"train.epochs=6", "train.batch=16"}; }

TEST_F(Train, ProfilesItsFirstStepsAndTrainsAsWithout) {
  expect_success(run("train", training() + Words{"out.dir=plain"}));
  const ProcessResult result =
      run("train", training() + Words{"out.dir=profiled", "train.profile_steps=1", "train.log_every=1"});
  expect_success(result);
  EXPECT_NE(result.err.find("device busy"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("saved for backward"), std::string::npos) << result.err;
  const std::string profile = read_bytes(folder_ / "profiled/profile.md");
  for (const char* part : {"## By op", "## Memory", "attention | backward", "gradient\\_norm | update"})
    EXPECT_NE(profile.find(part), std::string::npos) << part << " in\n" << profile;
  EXPECT_GT(read_json(folder_ / "profiled/trace.json")["traceEvents"].size(), 20u);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "plain/profile.md"));
  EXPECT_EQ(read_bytes(folder_ / "plain/model.safetensors"),
            read_bytes(folder_ / "profiled/model.safetensors"));

  std::istringstream lines(read_bytes(folder_ / "profiled/metrics.jsonl"));
  std::string line;
  ASSERT_TRUE(std::getline(lines, line));
  const Json first = parse_json(line, "metrics");
  EXPECT_GT(first["images_per_s"].get<double>(), 0);
  EXPECT_EQ(first.contains("mfu_measured"), device_under_test() != "cpu");
}

TEST_F(Train, SaysThatItWasTooShortForAProfile) {
  const ProcessResult result = run("train", training() + Words{"out.dir=x", "train.profile_steps=100"});
  expect_success(result);
  EXPECT_NE(result.err.find("train.profile_steps=100 takes 206 steps"), std::string::npos) << result.err;
}

TEST_F(Train, RecomputedBlocksGiveTheSameFile) {
  const Words drops{"model.drop_path=0.2", "model.dropout=0.1"};
  expect_success(run("train", training() + drops + Words{"out.dir=plain"}));
  expect_success(run("train", training() + drops + Words{"out.dir=again", "model.recompute=blocks"}));
  EXPECT_EQ(read_bytes(folder_ / "plain/model.safetensors"), read_bytes(folder_ / "again/model.safetensors"));
}

}  // namespace
}  // namespace occam
