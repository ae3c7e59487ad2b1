// bench times what it says it times.
#include <nlohmann/json.hpp>

#include "core/io/json.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace {

class Bench : public AppFixture {};

TEST_F(Bench, GivesARowForEveryModeAndBatch) {
  const Words quick = tiny_model() + Words{"model.classes=3", "samples=3", "sample_s=0", "batches=[1,5]"};
  ProcessResult result = run("bench", quick + Words{"--json"});
  expect_success(result);
  const Json rows = parse_json(result.out, "bench")["rows"];
  ASSERT_EQ(rows.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const Json& r = rows[i];
    EXPECT_EQ(r["mode"], i < 2 ? "infer" : "train");
    EXPECT_EQ(r["batch"], i % 2 == 0 ? 1 : 5);
    EXPECT_GT(r["ms_low"].get<double>(), 0);
    EXPECT_LE(r["ms_low"].get<double>(), r["ms"].get<double>());
    EXPECT_LE(r["ms"].get<double>(), r["ms_high"].get<double>());
    EXPECT_NEAR(r["images_per_s"].get<double>() * r["ms"].get<double>(), 1e3 * r["batch"].get<double>(),
                1e-6);
    EXPECT_GT(r["tflops"].get<double>(), 0);
  }
  EXPECT_TRUE(snapshot(folder_.path()).empty());
  expect_success(run("bench", quick + Words{"out.dir=x", "precision=bf16"}));
  EXPECT_TRUE(snapshot(folder_ / "x").contains("report.html"));
}

}  // namespace
}  // namespace occam
