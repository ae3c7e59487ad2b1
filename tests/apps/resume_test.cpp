// A run that is killed, stopped or runs out of disk and then goes on with --resume auto ends with the same
// bits as one that was left alone.
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/io/json.h"
#include "core/rng.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

/// Everything that draws random numbers or keeps state: dropout, stochastic depth, augmentation, mixing,
/// averages, uneven parts of a batch, clipping, a warm-up, a log line that spans checkpoints, a short last
/// batch left out.
Words random_run() {
  return tiny_data() + tiny_model() +
         Words{"model.dropout=0.1",   "model.drop_path=0.2", "data.aug=deit",    "train.batch=11",
               "train.accumulate=3",  "train.ema=0.9",       "train.epochs=6",   "train.log_every=7",
               "train.optim.clip=1",  "train.eval_every=2",  "data.holdout=0.1", "train.schedule.warmup=1",
               "train.optim.lr=0.01", "out.dir=x",           "--resume",         "auto"};
}
constexpr int kSteps = 24;  // 4 an epoch

/// What a run leaves, without what depends on the clock.
std::map<std::string, std::string> results(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const char* name : {"model.safetensors", "ema.safetensors", "best.safetensors", "summary.json"})
    files[name] = read_bytes(folder / name);
  std::istringstream metrics(read_bytes(folder / "metrics.jsonl"));
  for (std::string line; std::getline(metrics, line);) {
    Json value = Json::parse(line);
    for (const char* rate : {"images_per_s", "mfu_measured", "mfu_datasheet"}) value.erase(rate);
    files["metrics.jsonl"] += value.dump() + "\n";
  }
  fs::path last = folder / ("ckpt/step-000000" + std::to_string(kSteps));
  for (const char* name : {"model.safetensors", "ema.safetensors", "optim.safetensors", "state.json"})
    files[std::string("ckpt/") + name] = read_bytes(last / name);
  return files;
}

int checkpoints_in(const fs::path& folder, bool temporary) {
  int count = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    count += (entry.path().filename().string().find(".tmp-") != std::string::npos) == temporary;
  return count;
}

class Resume : public AppFixture {
 protected:
  static const std::map<std::string, std::string>& reference() {
    static const std::map<std::string, std::string> files = [] {
      TempFolder folder;
      ProcessOptions options;
      options.folder = folder.path();
      ProcessResult result =
          run_process(binary_of("train"), random_run() + Words{"--device", device_under_test()}, options);
      EXPECT_EQ(result.code, 0) << result.err;
      auto all = results(folder / "x");
      EXPECT_FALSE(all["model.safetensors"].empty() || all["ema.safetensors"].empty());
      EXPECT_NE(all["model.safetensors"], all["best.safetensors"]);
      return all;
    }();
    return files;
  }
  void expect_same_results() {
    auto found = results(folder_ / "x");
    for (const auto& [name, bytes] : reference())
      EXPECT_TRUE(found[name] == bytes)
          << name
          << (name.ends_with(".json") || name.ends_with("l") ? ":\n" + found[name] + "\ninstead of\n" + bytes
                                                             : " differs");
    EXPECT_EQ(checkpoints_in(folder_ / "x/ckpt", true), 0);
    EXPECT_EQ(checkpoints_in(folder_ / "x/ckpt", false), 1);
  }
  void finish() {
    ProcessResult result = run("train", random_run());
    expect_success(result);
    expect_same_results();
  }
  /// A run that was stopped after its first checkpoint, or later.
  void leave_unfinished() {
    std::unique_ptr<Process> process = start("train", random_run());
    ASSERT_TRUE(process->wait_until([&] { return checkpoints_in(folder_ / "x/ckpt", false) > 0; }));
    process->signal(SIGTERM);
    ASSERT_EQ(process->wait().code, 1);
  }
  fs::path checkpoint() {
    for (const auto& entry : fs::directory_iterator(folder_ / "x/ckpt"))
      if (entry.path().string().find(".tmp-") == std::string::npos) return entry.path();
    return {};
  }
};

TEST_F(Resume, AfterAKillAtAnyMomentTheResultIsTheSame) {
  const fs::path x = folder_ / "x", ckpt = x / "ckpt";
  struct Moment {
    const char* name;
    std::function<bool()> reached;
  };
  const std::vector<Moment> moments{
      {"as the folder is made", [&] { return fs::exists(x); }},
      {"before the first checkpoint", [&] { return fs::exists(x / "metrics.jsonl"); }},
      {"while the first checkpoint is written", [&] { return checkpoints_in(ckpt, true) > 0; }},
      {"after the first checkpoint", [&] { return checkpoints_in(ckpt, false) == 1; }},
      {"while a later checkpoint is written",
       [&] { return checkpoints_in(ckpt, false) == 1 && checkpoints_in(ckpt, true) > 0; }},
      {"before the older checkpoint goes", [&] { return checkpoints_in(ckpt, false) == 2; }},
      {"while the best weights are written",
       [&] {
         std::error_code error;
         for (const auto& entry : fs::directory_iterator(x, error))
           if (entry.path().filename().string().starts_with("best.safetensors.tmp")) return true;
         return false;
       }},
      {"after the best weights", [&] { return fs::exists(x / "best.safetensors"); }},
      {"at the end", [&] { return fs::exists(x / "model.safetensors"); }},
      {"before the summary", [&] { return fs::exists(x / "report.html"); }},
  };
  size_t hits = 0;
  for (const Moment& moment : moments) {
    SCOPED_TRACE(moment.name);
    fs::remove_all(x);
    std::unique_ptr<Process> process = start("train", random_run());
    process->wait_until(moment.reached);
    process->signal(SIGKILL);
    ProcessResult killed = process->wait();
    ASSERT_TRUE(killed.code == -SIGKILL || killed.code == 0) << killed.err;
    if (fs::exists(x / "summary.json")) continue;  // a moment too short to catch this time
    ++hits;
    finish();
  }
  EXPECT_GE(hits, moments.size() / 2);
}

TEST_F(Resume, AfterManyKillsTheResultIsTheSame) {
  Rng rng(1, "kill");
  // On a busy machine a run may end before it is killed: then it begins anew.
  for (int attempt = 0, kills = 0; kills < 2; ++attempt) {
    ASSERT_LT(attempt, 10);
    kills = 0;
    fs::remove_all(folder_ / "x");
    for (int round = 0; !fs::exists(folder_ / "x/summary.json"); ++round) {
      ASSERT_LT(round, 100);
      std::unique_ptr<Process> process = start("train", random_run());
      pause_before_stop(rng, round);
      process->signal(SIGKILL);
      int code = process->wait().code;
      ASSERT_TRUE(code == -SIGKILL || code == 0);
      kills += code != 0;
    }
    expect_same_results();
  }
}

TEST_F(Resume, AfterSignalsInTheMidstOfEpochsTheResultIsTheSame) {
  Rng rng(2, "stop");
  for (int attempt = 0, stops = 0; stops < 2; ++attempt) {
    ASSERT_LT(attempt, 10);
    stops = 0;
    fs::remove_all(folder_ / "x");
    for (int round = 0; !fs::exists(folder_ / "x/summary.json"); ++round) {
      ASSERT_LT(round, 100);
      std::unique_ptr<Process> process = start("train", random_run());
      process->wait_until([&] { return fs::exists(folder_ / "x/metrics.jsonl"); });
      pause_before_stop(rng, round);
      process->signal(round % 2 == 0 ? SIGINT : SIGTERM);
      ProcessResult result = process->wait();
      if (result.code == 0 || result.code < 0)
        continue;  // stopped after its end, or before it could take signals
      expect_failure("train", result, 1, {"stopped before the end", "out.dir=x", "--resume auto"});
      EXPECT_EQ(checkpoints_in(folder_ / "x/ckpt", false), 1);
      ++stops;
    }
    expect_same_results();
  }
}

TEST_F(Resume, AfterAFullDiskTheResultIsTheSame) {
  int failed = 0;
  for (rlim_t bytes : {10'000, 12'000, 14'000, 16'000, 18'000}) {
    ProcessResult result = run("train", random_run(), {.file_bytes = bytes});
    if (result.code == 0) return expect_same_results();
    expect_failure("train", result, 1, {"cannot write x/", "File too large", "free some space"});
    ++failed;
  }
  EXPECT_GE(failed, 1);
  finish();
}

TEST_F(Resume, FromACheckpointIntoAnotherFolderTheWeightsAreTheSame) {
  leave_unfinished();
  auto before = snapshot(folder_ / "x");
  Words arguments = random_run();
  arguments.resize(arguments.size() - 3);
  ProcessResult result = run("train", arguments + Words{"out.dir=y", "--resume",
                                                        fs::relative(checkpoint(), folder_.path()).string()});
  expect_success(result);
  EXPECT_NE(result.err.find("continuing from x/ckpt/step-"), std::string::npos) << result.err;
  for (const char* name : {"model.safetensors", "ema.safetensors"})
    EXPECT_TRUE(read_bytes(folder_ / "y" / name) == reference().at(name)) << name;
  EXPECT_TRUE(fs::exists(folder_ / "y/best.safetensors"));
  EXPECT_TRUE(snapshot(folder_ / "x") == before);
}

TEST_F(Resume, WithOtherSettingsIsRefused) {
  leave_unfinished();
  auto before = snapshot(folder_.path());
  const std::pair other_precision = device_under_test() == "cpu"
                                        ? std::pair{"precision=bf16", "precision: \"f32\" -> \"bf16\""}
                                        : std::pair{"precision=f32", "precision: \"bf16\" -> \"f32\""};
  for (auto [setting, change] : {std::pair{"train.batch=12", "train.batch: 11 -> 12"},
                                 {"train.optim.lr=0.5", "train.optim.lr: 0.01 -> 0.5"},
                                 {"train.epochs=7", "train.epochs: 6 -> 7"},
                                 {"train.seed=1", "train.seed: 0 -> 1"},
                                 {"train.ema=0", "train.ema: 0.9 -> 0"},
                                 {"model.dropout=0", "model.dropout: 0.1 -> 0"},
                                 {"model.dim=16", "model.dim: 8 -> 16"},
                                 {"data.holdout=0.2", "data.holdout: 0.1 -> 0.2"},
                                 {"data.aug=light", "data.aug.preset: \"deit\" -> \"light\""},
                                 other_precision}) {
    SCOPED_TRACE(setting);
    expect_failure("train", run("train", with(random_run(), {setting})), 2,
                   {"x was begun with other settings", change, "use the earlier settings", "a new out.dir"});
    EXPECT_TRUE(snapshot(folder_.path()) == before) << "files were made or changed";
  }
  ProcessResult result =
      run("train", random_run() + Words{"threads=1", "data.workers=0", "train.save_every=5"});
  EXPECT_EQ(result.code, 2) << "data.workers is set twice";
  expect_success(run("train", with(random_run(), {"threads=1", "data.workers=0", "train.save_every=5"})));
  expect_same_results();
}

TEST_F(Resume, FromADamagedCheckpointIsRefused) {
  leave_unfinished();
  const fs::path at = checkpoint();
  struct Damage {
    const char* file;
    std::function<std::string(std::string)> change;
    Words parts;
  };
  const std::vector<Damage> damages{
      {"state.json", [](std::string s) { return s.substr(0, s.size() / 2); }, {"state.json:"}},
      {"state.json", [](std::string) { return "{}"; }, {"state.json", "not the state of a training run"}},
      {"state.json", [](std::string) { return "[]"; }, {"state.json", "not the state of a training run"}},
      {"state.json",
       [](std::string s) {
         Json state = Json::parse(s);
         state["batch"] = 1 << 20;
         return state.dump();
       },
       {"cannot start at epoch"}},
      {"state.json",
       [](std::string s) {
         Json state = Json::parse(s);
         state["losses"] = "many";
         return state.dump();
       },
       {"state.json", "not the state of a training run"}},
      {"model.safetensors",
       [](std::string s) { return s.substr(0, s.size() - 1); },
       {"model.safetensors", "truncated"}},
      {"optim.safetensors",
       [](std::string s) { return s.substr(0, s.size() - 1); },
       {"optim.safetensors", "truncated"}},
      {"ema.safetensors", [](std::string s) { return s + "x"; }, {"ema.safetensors", "damaged"}},
  };
  for (const Damage& d : damages) {
    SCOPED_TRACE(d.file);
    const std::string whole = read_bytes(at / d.file);
    write_bytes(at / d.file, d.change(whole));
    auto before = snapshot(folder_ / "x/ckpt");
    expect_failure("train", run("train", random_run()), 2, d.parts);
    EXPECT_TRUE(snapshot(folder_ / "x/ckpt") == before);
    write_bytes(at / d.file, whole);
  }
  fs::rename(at / "optim.safetensors", folder_ / "away");
  expect_failure("train", run("train", random_run()), 2, {"optim.safetensors", "No such file"});
  fs::rename(folder_ / "away", at / "optim.safetensors");
  finish();
}

TEST_F(Resume, WithOtherAlgorithmsInTheCacheTheResultIsTheSame) {
  if (device_under_test() == "cpu") GTEST_SKIP() << "a CPU's products are not measured";
  const fs::path x = folder_ / "x", cache = folder_ / "cache";
  setenv("OCCAM_CACHE", cache.c_str(), 1);
  struct Unset {
    ~Unset() { unsetenv("OCCAM_CACHE"); }
  } unset;
  const Words arguments =  // products large enough to be measured
      with(random_run(), {"model.dim=128", "model.image_size=32", "data.image_size=32", "data.images=400",
                          "train.batch=32", "train.accumulate=1"});
  auto weights = [&] { return read_bytes(x / "model.safetensors") + read_bytes(x / "ema.safetensors"); };
  expect_success(run("train", arguments));
  const std::string whole = weights();
  ASSERT_FALSE(whole.empty());
  fs::remove_all(x);
  std::unique_ptr<Process> process = start("train", arguments);
  ASSERT_TRUE(process->wait_until([&] { return checkpoints_in(x / "ckpt", false) > 0; }));
  process->signal(SIGTERM);
  ASSERT_EQ(process->wait().code, 1);

  EXPECT_GT(read_json(checkpoint() / "state.json")["choices"]["algorithms"].size(), 5u);
  for (const auto& file : fs::directory_iterator(cache)) {  // each product gets its neighbour's algorithm
    const Json before = read_json(file);
    Json after = before, last = before.back();
    for (const auto& [problem, choice] : before.items()) after[problem] = std::exchange(last, choice);
    write_json(file, after);
  }
  expect_success(run("train", arguments));
  EXPECT_TRUE(weights() == whole);
}

TEST_F(Resume, NeedsSomethingToResume) {
  Words arguments = random_run();
  arguments.resize(arguments.size() - 3);
  expect_failure("train", run("train", arguments + Words{"--resume", "auto"}), 2,
                 {"--resume auto needs out.dir"});
  expect_failure("train", run("train", arguments + Words{"out.dir=x", "--resume", "nowhere"}), 2,
                 {"--resume nowhere: no such checkpoint folder"});
  EXPECT_FALSE(fs::exists(folder_ / "x"));
  finish();
  auto before = snapshot(folder_.path());
  expect_failure("train", run("train", random_run()), 2, {"x holds a finished run", "nothing to resume"});
  EXPECT_TRUE(snapshot(folder_.path()) == before);
}

}  // namespace
}  // namespace occam
