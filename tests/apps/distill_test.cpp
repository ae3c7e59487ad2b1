// distill from its command line: what it writes, and going on after it was stopped.
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/io/json.h"
#include "core/io/safetensors.h"
#include "core/rng.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

class Distill : public AppFixture {
 protected:
  void SetUp() override { write_bytes(folder_ / "model.safetensors", checkpoint_bytes()); }

  static Words settings() {
    return tiny_data() + Words{"distill.teacher.checkpoint=model.safetensors",
                               "distill.profile_images=12",
                               "distill.runs=[{blocks: {sparsest: 1}, options: {hidden: 3}}, "
                               "{blocks: {densest: 1}}, {blocks: {first: 2}, with: fresh_attention}]",
                               "distill.stage1.steps=6",
                               "distill.stage1.batch=8",
                               "distill.stage1.lr=0.01",
                               "distill.stage2.steps=5",
                               "distill.stage2.batch=8",
                               "distill.stage2.ema=0.8",
                               "distill.kd_weight=0.5",
                               "distill.before_images=12",
                               "data.aug=deit",
                               "save_every=3",
                               "out.dir=x"};
  }
  std::unique_ptr<Process> start_again() { return start("distill", settings() + Words{"--resume", "auto"}); }
  Json summary(const std::string& folder = "x") { return read_json(folder_ / folder / "summary.json"); }
  /// What a run leaves, without what depends on the clock.
  std::map<std::string, std::string> results(const std::string& at) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(folder_ / at / "students"))
      files[entry.path().filename().string()] = read_bytes(entry.path());
    Json s = summary(at);
    s["teacher"].erase("latency_ms");
    for (Json& r : s["runs"]) r.erase("latency_ms"), r.erase("train_s");
    files["summary.json"] = s.dump(1);
    std::istringstream metrics(read_bytes(folder_ / at / "metrics.jsonl"));
    for (std::string line; std::getline(metrics, line);) {
      Json value = Json::parse(line);
      value.erase("images_per_s");
      files["metrics.jsonl"] += value.dump() + "\n";
    }
    return files;
  }
};

TEST_F(Distill, SummaryHoldsWhatIsPromised) {
  expect_success(run("distill", settings()));
  const Json s = summary();
  const double teacher = s["teacher"]["top1"];
  EXPECT_GE(teacher, 0);
  EXPECT_LE(teacher, 1);
  for (const char* key : {"params", "macs", "latency_ms"})
    EXPECT_GT(s["teacher"][key].get<double>(), 0) << key;
  // Three runs, the identity control of each set of blocks, the no-op once.
  ASSERT_EQ(s["runs"].size(), 7u);
  double no_op = -1;
  for (const Json& r : s["runs"])
    if (r["with"] == "no_op") no_op = r["top1"];
  ASSERT_GE(no_op, 0);
  for (const Json& r : s["runs"]) {
    SCOPED_TRACE(r["name"].get<std::string>());
    for (const char* key : {"top1_before", "top1"}) {
      EXPECT_GE(r[key].get<double>(), 0);
      EXPECT_LE(r[key].get<double>(), 1);
    }
    EXPECT_DOUBLE_EQ(r["drop"].get<double>(), teacher - r["top1"].get<double>());
    EXPECT_DOUBLE_EQ(r["drop_vs_no_op"].get<double>(), no_op - r["top1"].get<double>());
    for (const char* key : {"params", "macs", "latency_ms"}) EXPECT_GT(r[key].get<double>(), 0) << key;
    const bool tapped = r["with"] == "bilstm" || r["with"] == "fresh_attention";
    EXPECT_EQ(r["match_error"].is_number(), tapped);
    EXPECT_EQ(r["mean_sparsity"].is_null(), r["with"] == "no_op");
    EXPECT_TRUE(r["options"].is_object());
    // The student opens by its file alone and has the accuracy that was told.
    const std::string file = "x/" + r["student"].get<std::string>();
    const Words data = tiny_data() + Words{"model.checkpoint=" + file};
    ProcessResult evaluated = run("evaluate", data + Words{"out.dir=e", "out.overwrite=true", "--json"});
    expect_success(evaluated);
    EXPECT_EQ(parse_json(evaluated.out, "evaluate")["top1"], r["top1"]);
    if (r["with"] != "identity" || r["blocks"].size() == 1)
      expect_success(run("profile_sparsity", data + Words{"out.dir=p", "out.overwrite=true"}));
  }
  EXPECT_EQ(s["runs"][0]["options"]["hidden"], "3");
  EXPECT_EQ(s["runs"][0]["blocks"][0], s["ranking"][0]);
  EXPECT_EQ(s["runs"][1]["blocks"][0], s["ranking"][1]);
  const std::string report = read_bytes(folder_ / "x/report.html");
  for (const Json& r : s["runs"])
    EXPECT_NE(report.find(r["with"].get<std::string>()), std::string::npos) << r["with"];
}

TEST_F(Distill, AProfileOfTheSameImagesGivesTheSameRuns) {
  expect_success(run("distill", settings()));
  expect_success(
      run("profile_sparsity", with(tiny_data(), {"data.split=train", "data.limit=12",
                                                 "model.checkpoint=model.safetensors", "out.dir=p"})));
  expect_success(run("distill", with(settings(), {"distill.profile=p/summary.json", "out.dir=y"})));
  EXPECT_TRUE(results("x") == results("y"));
}

TEST_F(Distill, AfterKillsAndSignalsTheResultIsTheSame) {
  expect_success(run("distill", with(settings(), {"out.dir=y"})));
  const auto expected = results("y");
  Rng rng(3, "kill");
  // On a busy machine a run may end before it is stopped: then it begins anew.
  for (int attempt = 0, kills = 0, resumed = 0; kills < 3 || resumed < 1; ++attempt) {
    ASSERT_LT(attempt, 10);
    kills = resumed = 0;
    fs::remove_all(folder_ / "x");
    for (int round = 0; !fs::exists(folder_ / "x/summary.json"); ++round) {
      ASSERT_LT(round, 150);
      std::unique_ptr<Process> process = start_again();
      process->wait_until([&] { return fs::exists(folder_ / "x/metrics.jsonl"); });
      pause_before_stop(rng, round);
      process->signal(round % 3 == 0 ? SIGTERM : SIGKILL);
      const ProcessResult result = process->wait();
      ASSERT_TRUE(result.code == 0 || result.code == 1 || result.code == -SIGKILL ||
                  result.code == -SIGTERM)  // before it could take signals
          << result.code << " " << result.err;
      kills += result.code != 0;
      resumed += result.err.find("continuing from") != std::string::npos;
    }
    auto found = results("x");
    for (const auto& [name, bytes] : expected) EXPECT_TRUE(found[name] == bytes) << name;
  }
}

TEST_F(Distill, FromADamagedCheckpointIsRefused) {
  std::unique_ptr<Process> process = start_again();
  auto checkpoint = [&]() -> fs::path {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder_ / "x/ckpt", error))
      if (entry.path().string().find(".tmp-") == std::string::npos) return entry.path();
    return {};
  };
  ASSERT_TRUE(process->wait_until([&] { return !checkpoint().empty(); }));
  process->signal(SIGTERM);
  ASSERT_EQ(process->wait().code, 1);
  const fs::path at = checkpoint() / "state.json";
  const std::string whole = read_bytes(at);
  Json mangled = Json::parse(whole);
  mangled["results"] = 3;
  for (const std::string& text : {whole.substr(0, whole.size() / 2), std::string("{}"), mangled.dump()}) {
    write_bytes(at, text);
    expect_failure("distill", run("distill", settings() + Words{"--resume", "auto"}), 2, {"state.json"});
  }
  write_bytes(at, whole);
  expect_failure("distill",
                 run("distill", with(settings(), {"distill.stage2.steps=7"}) + Words{"--resume", "auto"}), 2,
                 {"x was begun with other settings", "distill.stage2.steps: 5 -> 7"});
  expect_success(run("distill", settings() + Words{"--resume", "auto"}));
}

TEST_F(Distill, WhatCannotBeDistilledIsRefusedBeforeTheWork) {
  struct Case {
    const char* setting;
    Words parts;
  };
  for (const Case& c : std::vector<Case>{
           {"distill.runs=[{blocks: {sparsest: 3}}]", {"sparsest 3 blocks are asked for, 2 can be chosen"}},
           {"distill.runs=[{blocks: [7]}]", {"block 7", "0 to 1"}},
           {"distill.runs=[{blocks: [0], with: bilst}]", {"bilst", "bilstm"}},
           {"distill.runs=[{blocks: [0], options: {hiddn: 3}}]", {"hiddn", "hidden"}},
           {"distill.runs=[{with: bilstm}]", {"exactly one of list, sparsest"}},
           {"distill.rank_by=entropie", {"entropie", "entropy"}},
           {"distill.profile=nowhere.json", {"nowhere.json"}},
           {"distill.profile=model.safetensors", {"model.safetensors"}},
           {"distill.label_weight=0", {"label_weight and kd_weight"}}}) {
    SCOPED_TRACE(c.setting);
    auto before = snapshot(folder_.path());
    Words arguments = with(settings(), {c.setting});
    if (std::string(c.setting) == "distill.label_weight=0")
      arguments = with(arguments, {"distill.kd_weight=0"});
    expect_failure("distill", run("distill", arguments), 2, c.parts);
    EXPECT_TRUE(snapshot(folder_.path()) == before);
  }
}

}  // namespace
}  // namespace occam
