#include "apps/common/run_folder.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "tests/core/expect_error.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

class RunFolderTest : public ::testing::Test {
 protected:
  /// Opens a run as an app does.
  std::unique_ptr<RunFolder> open(bool overwrite = false, const std::string& resume = "") {
    auto run = std::make_unique<RunFolder>(RunFolder::Options{dir_, overwrite, resume});
    write_bytes(run->path() / "config.resolved.yaml", "a: 1\n");
    return run;
  }
  void add_checkpoint(RunFolder& run, int64_t step) {
    fs::create_directory(run.checkpoint(step));
    write_bytes(run.checkpoint(step) / "state.json", std::to_string(step));
  }
  /// A run that leaves these lines and checkpoints and is not finished.
  void leave_unfinished(std::vector<int64_t> steps, bool overwrite = false) {
    auto run = open(overwrite);
    run->begin_metrics();
    for (int64_t step : steps) {
      run->log({{"step", step}});
      add_checkpoint(*run, step);
    }
  }
  void leave_finished(const std::string& mark) {
    auto run = open(true);
    write_bytes(run->path() / "result.txt", mark);
    add_checkpoint(*run, 1);
    run->finish({{"mark", mark}});
  }
  std::string metrics() { return read_bytes(dir_ / "metrics.jsonl"); }

  TempFolder folder_;
  fs::path dir_ = folder_ / "runs/x";
};

TEST_F(RunFolderTest, AFinishedRunHoldsItsFilesAndNoLock) {
  {
    auto run = open();
    run->log({{"step", 1}, {"loss", 0.5}});
    EXPECT_EQ(read_bytes(run->path() / "metrics.jsonl"), "{\"step\":1,\"loss\":0.5}\n");
    EXPECT_TRUE(fs::exists(folder_ / "runs/x.lock"));
    run->finish({{"top1", 0.5}});
    EXPECT_EQ(run->path(), dir_);
  }
  EXPECT_EQ(read_json(dir_ / "summary.json")["top1"], 0.5);
  EXPECT_FALSE(fs::exists(folder_ / "runs/x.lock"));
  EXPECT_FALSE(fs::exists(dir_ / "ckpt"));
}

TEST_F(RunFolderTest, AFinishedRunIsNotReplacedUnasked) {
  leave_finished("first");
  EXPECT_OCCAM_ERROR(open(), ErrorKind::usage,
                     "holds a finished run; choose another out.dir or set out.overwrite=true");
  EXPECT_OCCAM_ERROR(open(false, "auto"), ErrorKind::usage, "nothing to resume");
  EXPECT_EQ(read_bytes(dir_ / "result.txt"), "first");
}

TEST_F(RunFolderTest, OverwriteKeepsTheOldResultsUntilTheNewAreReady) {
  leave_finished("first");
  {
    auto run = open(true);
    EXPECT_NE(run->path(), dir_);
    write_bytes(run->path() / "result.txt", "half");
    // Fails here.
  }
  EXPECT_EQ(read_bytes(dir_ / "result.txt"), "first");
  leave_finished("second");
  EXPECT_EQ(read_bytes(dir_ / "result.txt"), "second");
  EXPECT_FALSE(fs::exists(folder_ / "runs/x.partial"));
}

TEST_F(RunFolderTest, AnOverwritingRunResumesWhereItWorked) {
  leave_finished("first");
  leave_unfinished({10}, true);
  auto run = open(true, "auto");
  ASSERT_TRUE(run->resume_from());
  EXPECT_EQ(read_bytes(*run->resume_from() / "state.json"), "10");
  EXPECT_TRUE(fs::exists(dir_ / "result.txt"));
  run->finish({});
  EXPECT_FALSE(fs::exists(dir_ / "result.txt"));
  EXPECT_EQ(run->checkpoint_steps(), std::vector<int64_t>{10});
}

TEST_F(RunFolderTest, AnUnfinishedRunIsResumedOrRefused) {
  leave_unfinished({5, 10, 100});
  EXPECT_OCCAM_ERROR(open(), ErrorKind::usage, "continue it with --resume auto");
  auto run = open(false, "auto");
  EXPECT_EQ(run->resume_from()->filename(), "step-00000100");
  EXPECT_EQ(run->checkpoint_steps(), (std::vector<int64_t>{5, 10, 100}));
}

TEST_F(RunFolderTest, MetricsEndWhereTheResumedCheckpointBegins) {
  leave_unfinished({5, 10});
  write_bytes(dir_ / "metrics.jsonl", "{\"step\":5}\n{\"step\":10}\n{\"step\":11}\n{\"st");
  auto run = open(false, "auto");
  run->begin_metrics(10);
  run->log({{"step", 11}, {"again", true}});
  EXPECT_EQ(metrics(), "{\"step\":5}\n{\"step\":10}\n{\"step\":11,\"again\":true}\n");
}

TEST_F(RunFolderTest, ResumingAnEarlierCheckpointDropsTheLaterOnes) {
  leave_unfinished({5, 10, 20});
  auto run = open(false, (dir_ / "ckpt/step-00000010/").string());
  EXPECT_EQ(run->path(), dir_);
  EXPECT_EQ(run->checkpoint_steps(), (std::vector<int64_t>{5, 10, 20}));
  run->begin_metrics(10);
  EXPECT_EQ(run->checkpoint_steps(), (std::vector<int64_t>{5, 10}));
  EXPECT_OCCAM_ERROR(RunFolder({folder_ / "runs/y", false, (dir_ / "ckpt/step-9").string()}),
                     ErrorKind::usage, "no such checkpoint folder");
}

TEST_F(RunFolderTest, ACheckpointOfAnotherRunStartsANewFolder) {
  leave_unfinished({5});
  fs::path checkpoint = dir_ / "ckpt/step-00000005";
  RunFolder run({folder_ / "runs/y", false, checkpoint.string()});
  EXPECT_EQ(run.path(), folder_ / "runs/y");
  EXPECT_EQ(*run.resume_from(), checkpoint);
  EXPECT_TRUE(fs::exists(checkpoint));
}

TEST_F(RunFolderTest, ResumeAutoWithoutACheckpointBeginsAnew) {
  EXPECT_FALSE(open(false, "auto")->resume_from());
  {
    auto run = open();
    run->log({{"step", 1}});
  }
  auto run = open(false, "auto");
  EXPECT_FALSE(run->resume_from());
  run->begin_metrics();
  EXPECT_EQ(metrics(), "");
}

TEST_F(RunFolderTest, ARunThatFailsBeforeAnyResultLeavesNothing) {
  {
    auto run = open();
    run->begin_metrics();
  }
  EXPECT_FALSE(fs::exists(dir_));
  EXPECT_NO_THROW(open());
}

TEST_F(RunFolderTest, FilesThatAreNoRunsAreNeverTouched) {
  fs::create_directories(dir_);
  write_bytes(dir_ / "thesis.tex", "x");
  EXPECT_OCCAM_ERROR(open(true), ErrorKind::usage, "no run's");
  EXPECT_EQ(read_bytes(dir_ / "thesis.tex"), "x");
  write_bytes(folder_ / "file", "");
  EXPECT_OCCAM_ERROR(RunFolder({folder_ / "file"}), ErrorKind::usage, "is a file");
  EXPECT_OCCAM_ERROR(RunFolder({""}), ErrorKind::usage, "out.dir is empty");
}

TEST_F(RunFolderTest, TemporariesOfAKilledRunAreRemoved) {
  leave_unfinished({5});
  fs::create_directory(dir_ / "ckpt/step-00000006.tmp-123-0");
  write_bytes(dir_ / "report.html.tmp-123-1", "half");
  auto run = open(false, "auto");
  EXPECT_EQ(run->checkpoint_steps(), std::vector<int64_t>{5});
  EXPECT_FALSE(fs::exists(dir_ / "ckpt/step-00000006.tmp-123-0"));
  EXPECT_FALSE(fs::exists(dir_ / "report.html.tmp-123-1"));
}

TEST_F(RunFolderTest, ARunKilledAsItBeganIsNoHindrance) {
  fs::create_directories(dir_ / "ckpt");
  write_bytes(dir_ / "config.resolved.yaml.tmp-123-0", "a:");
  EXPECT_FALSE(open(false, "auto")->resume_from());
  fs::create_directories(dir_ / "ckpt");
  write_bytes(dir_ / "ckpt/weights", "");
  EXPECT_OCCAM_ERROR(open(), ErrorKind::usage, "no run's");
}

TEST_F(RunFolderTest, TwoRunsDoNotShareAFolder) {
  auto run = open();
  EXPECT_OCCAM_ERROR(open(true), ErrorKind::usage, "in use by process " + std::to_string(getpid()));
}

TEST_F(RunFolderTest, AKilledRunLeavesNoStaleLock) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  pid_t child = fork();
  if (child == 0) {
    auto run = open();
    run->log({{"step", 1}});
    if (write(ready[1], "x", 1) != 1) _exit(1);
    for (;;) pause();
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_OCCAM_ERROR(open(true), ErrorKind::usage, "in use by process " + std::to_string(child));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(fs::exists(folder_ / "runs/x.lock"));
  EXPECT_NO_THROW(open(true));
  EXPECT_FALSE(fs::exists(folder_ / "runs/x.lock"));
}

}  // namespace
}  // namespace occam
