// What the machine refuses: memory, disk, permissions, a folder in use; and values that are not finite.
#include <sys/resource.h>

#include "core/io/safetensors.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

class Limits : public AppFixture, public testing::WithParamInterface<AppCase> {
 protected:
  /// A finished run in x.
  void SetUp() override {
    arguments_ = tiny_run(GetParam()) + Words{"out.dir=x"};
    expect_success(run(GetParam().name, arguments_));
    arguments_.push_back("out.overwrite=true");
  }
  const std::string& app() const { return GetParam().name; }
  /// Every file as it was before; unfinished work may stand beside it.
  void expect_kept(const std::map<std::string, std::string>& before) {
    auto after = snapshot(folder_.path());
    for (const auto& [name, bytes] : before)
      EXPECT_TRUE(after.contains(name) && after[name] == bytes) << name;
  }

  Words arguments_;
};
INSTANTIATE_TEST_SUITE_P(Apps, Limits, testing::ValuesIn(app_cases()), case_name);

TEST_P(Limits, FilesThatGrowTooLargeLeaveEarlierResultsAndNameThemselves) {
  auto before = snapshot(folder_.path());
  int failed = 0;
  for (rlim_t bytes : {0, 100, 600, 1100, 1500, 5000, 9000, 12000}) {
    SCOPED_TRACE(bytes);
    ProcessResult result = run(app(), arguments_, {.file_bytes = bytes});
    if (result.code == 0) break;
    ++failed;
    expect_failure(app(), result, 1, {"cannot write x.partial/", "File too large", "free some space"});
    expect_kept(before);
    EXPECT_FALSE(fs::exists(folder_ / "x.lock"));
    for (const auto& entry : fs::recursive_directory_iterator(folder_.path()))
      EXPECT_EQ(entry.path().string().find(".tmp-"), std::string::npos) << entry.path();
  }
  EXPECT_GE(failed, 3);
  expect_success(run(app(), arguments_));
  EXPECT_FALSE(fs::exists(folder_ / "x.partial"));
}

TEST_P(Limits, AFullStandardOutputIsAFailureThatKeepsTheResults) {
  ProcessOptions full;
  full.out = "/dev/full";
  ProcessResult result = run(app(), with(arguments_, {"out.dir=y"}) + Words{"--json"}, full);
  expect_failure(app(), result, 1, {"cannot write to the standard output"});
  EXPECT_TRUE(fs::exists(folder_ / "y/summary.json"));
}

TEST_P(Limits, AFullLogChangesNeitherTheResultNorTheExitCode) {
  ProcessOptions full;
  full.err = "/dev/full";
  EXPECT_EQ(run(app(), with(arguments_, {"out.dir=y"}), full).code, 0);
  EXPECT_TRUE(fs::exists(folder_ / "y/summary.json"));
  EXPECT_EQ(run(app(), {"wombat=1"}, full).code, 2);
}

TEST_P(Limits, MemoryThatIsNotThereIsExit4) {
  auto before = snapshot(folder_.path());
  const std::string& key = GetParam().checkpoint_key;
  const std::string model = key.substr(0, key.size() - std::string("checkpoint").size());
  Words large = with(arguments_, {"data.image_size=4096", model + "image_size=4096"});
  ProcessResult result = run(app(), large, {.memory = rlim_t(2) << 30});
  if (!can_limit_memory()) GTEST_SKIP() << "AddressSanitizer needs all of the address space";
  expect_failure(app(), result, 4, {"out of", "memory"});
  EXPECT_TRUE(snapshot(folder_.path()) == before);
}

TEST_P(Limits, AFolderThatMustNotBeWritten) {
  auto before = snapshot(folder_.path());
  fs::create_directory(folder_ / "closed");
  fs::permissions(folder_ / "closed", fs::perms::owner_read | fs::perms::owner_exec);
  ProcessResult result = run(app(), with(arguments_, {"out.dir=closed/x"}), {.obeys_permissions = true});
  if (result.code == 125) GTEST_SKIP() << "root cannot give up its rights here";
  expect_failure(app(), result, 1, {"closed/x", "Permission denied", "choose another out.dir"});
  fs::permissions(folder_ / "x", fs::perms::owner_read | fs::perms::owner_exec);
  fs::permissions(folder_.path(), fs::perms::owner_read | fs::perms::owner_exec);
  expect_failure(app(), run(app(), arguments_, {.obeys_permissions = true}), 1, {"x", "Permission denied"});
  fs::permissions(folder_.path(), fs::perms::owner_all);
  fs::permissions(folder_ / "x", fs::perms::owner_all);
  fs::remove(folder_ / "closed");
  EXPECT_TRUE(snapshot(folder_.path()) == before);
  expect_failure(app(), run(app(), with(arguments_, {"out.dir=/proc/x"})), 1,
                 {"/proc/x", "choose another out.dir"});
  expect_failure(app(), run(app(), with(arguments_, {"out.dir=/dev/full"})), 2, {"/dev/full", "is a file"});
}

TEST_P(Limits, AFolderInUseIsLeftToItsRun) {
  std::unique_ptr<Process> first = start(app(), with(arguments_, GetParam().slow + Words{"out.dir=y"}));
  ASSERT_TRUE(first->wait_until([&] { return fs::exists(folder_ / "y/env.json"); })) << first->wait().err;
  expect_failure(app(), run(app(), with(arguments_, {"out.dir=y"})), 2,
                 {"y is in use by process " + std::to_string(first->id()), "choose another out.dir"});
  EXPECT_TRUE(fs::exists(folder_ / "y/env.json"));
  first->signal(SIGKILL);
  EXPECT_EQ(first->wait().code, -SIGKILL);
  // The lock went with its holder.
  expect_success(run(app(), with(arguments_, {"out.dir=y"})));
}

TEST_P(Limits, SignalsEndTheRunInOrder) {
  for (int signal : {SIGINT, SIGTERM}) {
    auto before = snapshot(folder_.path());
    std::unique_ptr<Process> process = start(app(), with(arguments_, GetParam().slow));
    ASSERT_TRUE(process->wait_until([&] { return fs::exists(folder_ / "x.partial/env.json"); }))
        << process->wait().err;
    usleep(100'000);
    process->signal(signal);
    ProcessResult result = process->wait();
    expect_failure(app(), result, 1,
                   {"stopped before the end", GetParam().resumes ? "--resume auto" : "nothing was saved"});
    expect_kept(before);
    EXPECT_EQ(fs::exists(folder_ / "x.partial"), GetParam().resumes);
    fs::remove_all(folder_ / "x.partial");
    EXPECT_FALSE(fs::exists(folder_ / "x.lock"));
  }
}

class NotFinite : public AppFixture {};

TEST_F(NotFinite, TrainingStopsWithExit3AndKeepsWhatItHad) {
  Words arguments = tiny_data() + tiny_model() + Words{"train.epochs=2", "train.batch=16", "out.dir=x"};
  expect_success(run("train", arguments));
  auto before = snapshot(folder_.path());
  for (const char* log_every : {"train.log_every=1", "train.log_every=1000"}) {
    ProcessResult result =
        run("train", arguments + Words{"out.overwrite=true", "train.optim.lr=1e30", log_every});
    expect_failure("train", result, 3, {"the loss became", "between steps", "a smaller optim.lr"});
    auto after = snapshot(folder_.path());
    for (const auto& [name, bytes] : before) EXPECT_EQ(after[name], bytes) << name;
  }
}

TEST_F(NotFinite, WeightsThatAreNaNGiveExit3) {
  write_bytes(folder_ / "model.safetensors", checkpoint_bytes());
  {
    Safetensors file(folder_ / "model.safetensors");
    NamedTensors tensors;
    for (const SafetensorsEntry& e : file.entries()) {
      Tensor copy = raw::clone(e.tensor);
      if (e.name == "norm.bias") copy.fill_(std::numeric_limits<double>::quiet_NaN());
      tensors.emplace_back(e.name, copy);
    }
    write_safetensors(folder_ / "nan.safetensors", tensors, file.metadata());
  }
  for (const AppCase& c : app_cases()) {
    SCOPED_TRACE(c.name);
    if (!c.needs_checkpoint) continue;
    ProcessResult result = run(c.name, with(c.tiny, {c.checkpoint_key + "=nan.safetensors", "out.dir=x"}));
    expect_failure(c.name, result, 3, {"not finite", "fix"});
    EXPECT_FALSE(fs::exists(folder_ / "x"));
  }
}

class Outputs : public AppFixture {};

TEST_F(Outputs, ThatCannotBeWrittenAreRefusedBeforeTheWork) {
  if (std::find(all_apps().begin(), all_apps().end(), "evaluate") == all_apps().end()) GTEST_SKIP();
  write_bytes(folder_ / "model.safetensors", checkpoint_bytes());
  Words arguments =
      with(tiny_data(), {"data.images=100000000", "model.checkpoint=model.safetensors", "out.dir=x"});
  expect_failure("evaluate", run("evaluate", arguments + Words{"outputs.logits=nowhere/l.safetensors"}), 1,
                 {"cannot write nowhere/l.safetensors", "create the folder"});
  expect_failure("evaluate", run("evaluate", arguments + Words{"outputs.logits=/dev/full"}), 2,
                 {"/dev/full", "not a regular file"});
  EXPECT_FALSE(fs::exists(folder_ / "x"));
}

}  // namespace
}  // namespace occam
