// bench times what it says it times.
#include <signal.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "core/io/json.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace {

class Bench : public AppFixture {
 protected:
  /// The lines of a run that must succeed.
  std::vector<Json> lines(const Words& arguments) {
    const ProcessResult result =
        run("bench", arguments + Words{"--json", "bench.samples=3", "bench.sample_s=0"});
    expect_success(result);
    std::vector<Json> lines;
    std::istringstream text(result.out);
    for (std::string line; std::getline(text, line);) lines.push_back(parse_json(line, "bench"));
    return lines;
  }
};

void expect_times(const Json& line) {
  EXPECT_EQ(line.at("who"), "occam");
  EXPECT_GT(line.at("ms_low").get<double>(), 0) << line;
  EXPECT_LE(line.at("ms_low").get<double>(), line.at("ms").get<double>()) << line;
  EXPECT_LE(line.at("ms").get<double>(), line.at("ms_high").get<double>()) << line;
  EXPECT_EQ(line.at("samples_ms").size(), 3u) << line;
}

void expect_model_times(const Json& line) {
  expect_times(line);
  const double ms = line.at("ms"), b = double(line.at("B").get<int64_t>());
  EXPECT_NEAR(line.at("img_s").get<double>() * ms, 1e3 * b, 1e-6);
  EXPECT_GT(line.at("peak_gb").get<double>(), 0);
  EXPECT_NEAR(line.at("share_of_ceiling").get<double>(), line.at("floor_matmul_ms").get<double>() / ms, 1e-9);
  EXPECT_EQ(line.at("floor_ms"),
            std::max(line.at("floor_matmul_ms").get<double>(), line.at("floor_bytes_ms").get<double>()));
  EXPECT_GT(line.at("floor_bytes_ms").get<double>(), 0);
  EXPECT_LE(line.at("floor_bytes_ms"), line.at("op_traffic_ms"));
  EXPECT_NEAR(line.at("mfu_tflops").get<double>() / line.at("ceiling_tflops").get<double>(),
              line.at("share_of_ceiling").get<double>(), 1e-9);
}

const Words kTiny{"bench.tiny=true"};
const Words kBlock{"model.name=vit", "model.image_size=16", "model.patch=8",  "model.dim=16",
                   "model.heads=2",  "model.depth=1",       "model.classes=3"};

TEST_F(Bench, SweepsMixersOverLengthsAndBatches) {
  // What is named twice is timed once.
  const std::vector<Json> rows = lines(Words{"mixer", "bilstm"} + kBlock +
                                       Words{"bench.tokens=[10,5,10]", "bench.batch=[3,1,3]",
                                             "bench.mode=[infer,train,infer]", "bench.cell_s=0.05"});
  ASSERT_EQ(rows.size(), 2u * 3 * 2 * 2);
  std::set<std::string> seen;
  for (const Json& row : rows) {
    expect_times(row);
    EXPECT_NEAR(row.at("img_s").get<double>() * row.at("ms").get<double>(), 1e3 * row.at("B").get<double>(),
                1e-6);
    seen.insert(row.at("mixer").get<std::string>() + " " + std::to_string(row.at("tokens").get<int64_t>()) +
                " " + std::to_string(row.at("B").get<int64_t>()) + " " + row.at("pass").get<std::string>());
    const std::string mixer = row.at("mixer");
    EXPECT_EQ(row.at("depth"), mixer == "bilstm"      ? row.at("tokens").get<int64_t>()
                               : mixer == "attention" ? 1
                                                      : 0);
    EXPECT_EQ(row.at("params").get<int64_t>() == 0, mixer == "identity");
  }
  EXPECT_EQ(seen.size(), rows.size());
  EXPECT_EQ(rows[0].at("mixer"), "attention");
  EXPECT_EQ(rows[0].at("tokens"), 5) << "short ones first";

  // A step that would take too long is named and left out, and longer ones after it.
  for (const Json& row :
       lines(Words{"mixer", "bilstm"} + kBlock +
             Words{"bench.tokens=[2305,4097]", "bench.mode=infer", "bench.batch=64", "bench.cell_s=0.01"}))
    EXPECT_TRUE(row.contains("skipped") && !row.contains("ms")) << row;
}

TEST_F(Bench, GivesALineForEveryModeAndBatch) {
  const std::vector<Json> rows = lines(Words{"model"} + tiny_model() +
                                       Words{"model.classes=3", "bench.tiny=true", "bench.batch=[1,5]",
                                             "bench.mode=[infer,train,profile,distill]"});
  ASSERT_EQ(rows.size(), 8u);
  const char* modes[] = {"infer", "train", "profile", "distill"};
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(rows[i].at("what"), modes[i / 2]);
    EXPECT_EQ(rows[i].at("B"), i % 2 == 0 ? 1 : 5);
    EXPECT_EQ(rows[i].at("model"), "vit");
    expect_model_times(rows[i]);
  }
  // A training step has three times the products of a forward pass, and a profile as many as that.
  auto work = [&](size_t i) {
    return rows[i].at("mfu_tflops").get<double>() * rows[i].at("ms").get<double>();
  };
  EXPECT_NEAR(work(2), 3 * work(0), 1e-9 * work(2));
  EXPECT_NEAR(work(1), 5 * work(0), 1e-9 * work(1));
  EXPECT_NEAR(work(4), work(0), 1e-9 * work(4));
  EXPECT_NEAR(rows[4].at("ratio_to_infer").get<double>() * rows[4].at("infer_ms").get<double>(),
              rows[4].at("ms").get<double>(), 1e-9);
  EXPECT_TRUE(snapshot(folder_.path()).empty());
}

TEST_F(Bench, WritesAReportWhereItIsAskedTo) {
  expect_success(run("bench", Words{"model"} + tiny_model() +
                                  Words{"bench.tiny=true", "bench.samples=3", "bench.sample_s=0",
                                        "bench.batch=1", "out.dir=x", "precision=bf16"}));
  EXPECT_TRUE(snapshot(folder_ / "x").contains("report.html"));
  EXPECT_EQ(parse_json(snapshot(folder_ / "x").at("summary.json"), "x").at("rows").size(), 2u);
  const std::string metrics = snapshot(folder_ / "x").at("metrics.jsonl");
  EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 2) << metrics;
}

TEST_F(Bench, KeepsWhatItTimedWhenItIsStopped) {
  const auto timed = [this] {
    std::ifstream text(folder_ / "x/metrics.jsonl");
    std::vector<Json> lines;
    for (std::string line; std::getline(text, line) && !text.eof();)  // to the last whole one
      lines.push_back(parse_json(line, "metrics.jsonl"));
    return lines;
  };
  // Each would take some ten seconds.
  for (const Words& arguments :
       {Words{"mixer", "bilstm", "bench.tokens=[5,10,65]", "bench.batch=1", "bench.mode=infer",
              "bench.samples=1000", "bench.sample_s=0.001", "bench.cell_s=3600"} +
            kBlock,
        Words{"model", "bench.mode=infer", "bench.batch=[1,2,3,4,5,6,7,8]", "bench.samples=20",
              "bench.sample_s=0.05"} +
            kTiny + tiny_model(),
        Words{"op", "all", "bench.samples=20", "bench.sample_s=0.02"} + kTiny}) {
    std::unique_ptr<Process> process = start("bench", arguments + Words{"out.dir=x"});
    ASSERT_TRUE(process->wait_until([&] { return !timed().empty(); })) << process->wait().err;
    process->signal(SIGINT);
    const ProcessResult result = process->wait();
    expect_failure("bench", result, 1, {"stopped before the end", "metrics.jsonl and report.html of x"});
    EXPECT_NE(result.out.find("10 %"), std::string::npos) << "no table in\n" << result.out;
    const auto files = snapshot(folder_ / "x");
    ASSERT_TRUE(files.contains("report.html"));
    EXPECT_NE(files.at("report.html").find("stopped before its end"), std::string::npos);
    EXPECT_FALSE(files.contains("summary.json")) << "only a finished run has it";
    EXPECT_GT(timed().at(0).at("ms").get<double>(), 0);
    std::filesystem::remove_all(folder_ / "x");
  }
}

TEST_F(Bench, ProfilesStepsWhereItIsAskedTo) {
  expect_success(
      run("bench", Words{"model"} + tiny_model() +
                       Words{"bench.tiny=true", "bench.samples=3", "bench.sample_s=0", "bench.batch=2",
                             "bench.mode=[infer,train]", "bench.profile_steps=2", "out.dir=x"}));
  const auto files = snapshot(folder_ / "x");
  for (const char* name : {"infer-2/profile.md", "infer-2/trace.json", "train-2/trace.json"})
    EXPECT_TRUE(files.contains(name)) << name;
  const std::string table = files.at("train-2/profile.md");
  for (const char* part :
       {"(2 steps recorded, 2 timed without spans)", "| mlp | backward |", "| adamw | update |"})
    EXPECT_NE(table.find(part), std::string::npos) << part << " is missing in\n" << table;
}

TEST_F(Bench, TimesEveryRowAtSmallSize) {
  std::vector<std::string> listed;
  for (const Json& row : lines({"row", "list"})) {
    listed.push_back(row.at("row"));
    for (const char* key : {"on_gpu", "must", "against", "must_own", "must_memory", "commit"})
      EXPECT_TRUE(row.contains(key)) << row;
  }
  EXPECT_EQ(std::set<std::string>(listed.begin(), listed.end()).size(), listed.size());
  const std::vector<Json> rows = lines(Words{"row", "all"} + kTiny);
  ASSERT_EQ(rows.size(), listed.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].at("row"), listed[i]);
    expect_times(rows[i]);
    for (const char* key : {"what", "model", "B", "precision", "mode", "img_s", "peak_gb", "floor_ms",
                            "share_of_ceiling", "device"})
      EXPECT_TRUE(rows[i].contains(key)) << key << " is missing in " << rows[i];
  }
}

TEST_F(Bench, TimesOpsForwardAndBackward) {
  const std::vector<Json> passes = lines(Words{"op", "layer_norm"} + kTiny);
  ASSERT_EQ(passes.size(), 2u);
  EXPECT_EQ(passes[0].at("pass"), "forward");
  EXPECT_EQ(passes[1].at("pass"), "backward");
  for (const Json& line : passes) {
    expect_times(line);
    EXPECT_NEAR(line.at("share_of_roofline").get<double>() * line.at("ms").get<double>(),
                line.at("floor_ms").get<double>(), 1e-9);
    EXPECT_GT(line.at("gb_s").get<double>(), 0);
  }
  std::set<std::string> ops;
  for (const Json& line : lines(Words{"op", "all"} + kTiny)) ops.insert(line.at("op"));
  for (const char* op : {"attention", "linear", "softmax", "lstm", "cross_entropy", "adamw", "patchify"})
    EXPECT_TRUE(ops.contains(op)) << op;
}

TEST_F(Bench, WritesModelImagesAndLogitsForAnotherToCompare) {
  const std::vector<Json> written = lines(Words{"agree", "bench.file=there/a"} + kTiny);
  ASSERT_EQ(written.size(), 1u);
  const auto files = snapshot(folder_.path());
  EXPECT_TRUE(files.contains("there/a.safetensors"));
  for (const char* name : {"images", "logits_f32", "logits_bf16"})
    EXPECT_NE(files.at("there/a.io.safetensors").find(name), std::string::npos) << name;
}

TEST_F(Bench, RefusesWhatItDoesNotKnow) {
  auto refused = [&](const Words& arguments, const Words& parts) {
    expect_failure("bench", run("bench", arguments), 2, parts);
  };
  refused({"row", "train_S_26"}, {"there is no row 'train_S_26'", "train_S_256"});
  refused({"row"}, {"bench row which?"});
  refused({"op", "layernorm"}, {"there is no op 'layernorm'", "layer_norm"});
  refused({"op", "reshape"}, {"'reshape' is a view"});
  refused({"model", "layer_norm"}, {"takes no name", "layer_norm"});
  refused({"wombat"}, {"'wombat'", "verb"});
  refused({"model", "bench.mode=sing"}, {"bench.mode", "infer"});
  refused({"model", "bench.mode=[]"}, {"bench.mode is empty"});
  refused({"model", "bench.mixers=[nope]"}, {"nope", "bilstm"});
  refused({"model", "bench.mixer=nope"}, {"nope", "bilstm"});
  refused({"mixer", "pool", "bench.mode=[]"}, {"bench.mode is empty"});
  refused({"op", "softmax", "bench.tokens=[65,90]"}, {"bench op: bench.tokens is one number"});
  refused({"mixer", "pool", "bench.mixers=[dwconv]"}, {"bench.mixers is for bench mixer all", "pool"});
  refused({"op", "softmax", "bench.batch=[1,2]"}, {"bench op: bench.batch is one number"});
  refused({"model", "bench.tokens=65"}, {"bench.tokens", "model.image_size"});
  refused({"model", "bench.batch=0"}, {"bench.batch"});
  refused({"model", "bench.profile_steps=2"}, {"bench.profile_steps", "out.dir"});
  refused(Words{"model", "bench.mode=distill", "bench.mixer=identity", "bench.batch=1"} + tiny_model(),
          {"bench.mixer=identity"});
  if (device_under_test() == "cpu") {
    refused({"row", "infer_S_1"}, {"for a GPU", "bench.tiny=true"});
    refused({"ladder", "softmax"}, {OCCAM_CUDA ? "ladder softmax needs a GPU" : "build with CUDA=1"});
  }
  EXPECT_TRUE(snapshot(folder_.path()).empty());
}

}  // namespace
}  // namespace occam
