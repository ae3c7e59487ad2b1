#include "apps/common/app.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "apps/common/environment.h"
#include "apps/common/progress.h"
#include "apps/common/yaml.h"
#include "tests/apps/example_config.h"
#include "tests/core/expect_error.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

struct AppConfig : CommonConfig {
  ExampleStage stage;
  template <class V>
  void visit(V& v) {
    CommonConfig::visit(v);
    v("stage", stage, "how to train");
  }
};

using Body = std::function<void(App&, AppConfig&)>;
struct Result {
  int code;
  std::string out, err;
};

/// Runs the app with its output captured.
Result run(std::vector<std::string> arguments, const Body& body) {
  static const AppInfo info{.name = "train", .summary = "Trains.", .resumes = true};
  arguments.insert(arguments.begin(), "train");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  // Unset, run_app might start this process anew.
  setenv("GOMP_SPINCOUNT", "1000", 0);
  setenv("OPENBLAS_CORETYPE", blas_kernels().c_str(), 0);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  int code = run_app<AppConfig>(int(argv.size()), argv.data(), info, body);
  std::string out = testing::internal::GetCapturedStdout();
  return {code, out, testing::internal::GetCapturedStderr()};
}

class AppTest : public ::testing::Test {
 protected:
  TempFolder folder_;
  fs::path dir_ = folder_ / "x";
  std::string out_dir_ = "out.dir=" + dir_.string();
};

void nothing(App&, AppConfig&) {}

TEST(BlasKernels, AreReplacedOnlyWhereOpenBlasDoesNotKnowTheCpu) {
  for (const char* known : {"Haswell", "SkylakeX", "Zen", "Cooperlake", "ARMV8"})
    EXPECT_EQ(better_blas_kernels(known), "") << known;
#if defined(__x86_64__)
  const char* expected = __builtin_cpu_supports("avx512vl") ? "SkylakeX"
                         : __builtin_cpu_supports("avx2")   ? "Haswell"
                                                            : "";
  EXPECT_EQ(better_blas_kernels("Prescott"), expected);
#endif
  EXPECT_FALSE(blas_kernels().empty());
}

TEST_F(AppTest, ARunLeavesItsFolder) {
  Result r = run({"stage.steps=3", out_dir_, "--device", "cpu"}, [](App& app, AppConfig& config) {
    EXPECT_EQ(config.precision, "f32");
    config.stage.clip = 2.0;  // resolved by the app
    app.start_run(config);
    app.finish({{"top1", 0.5}});
  });
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.out, "");
  AppConfig read_back;
  read_config(read_yaml(dir_ / "config.resolved.yaml"), read_back);
  EXPECT_EQ(read_back.stage.steps, 3);
  EXPECT_EQ(read_back.stage.clip, 2.0);
  EXPECT_EQ(read_back.precision, "f32");
  Json env = read_json(dir_ / "env.json");
  EXPECT_EQ(env["command_line"][1], "stage.steps=3");
  for (const char* key : {"version", "commit", "device", "device_name", "threads", "libraries"})
    EXPECT_TRUE(env.contains(key)) << key;
  EXPECT_EQ(read_json(dir_ / "summary.json")["top1"], 0.5);
}

TEST_F(AppTest, JsonPrintsTheSummaryAlone) {
  Result r = run({out_dir_, "--json"}, [](App& app, AppConfig& config) {
    app.start_run(config);
    app.finish({{"top1", 0.5}});
  });
  EXPECT_EQ(r.out, "{\n  \"top1\": 0.5\n}\n");
  EXPECT_EQ(r.out, read_bytes(dir_ / "summary.json"));
  r = run({"--json"}, [](App& app, AppConfig&) { app.finish({{"no", "folder"}}); });
  EXPECT_EQ(r.out, "{\n  \"no\": \"folder\"\n}\n");
}

TEST_F(AppTest, CheckAndPrintConfigDoNoWork) {
  bool worked = false;
  auto body = [&](App& app, AppConfig& config) {
    app.start_run(config);
    worked = true;
  };
  EXPECT_EQ(run({out_dir_, "--check"}, body).code, 0);
  Result r = run({out_dir_, "--print-config", "stage.lr=0.25"}, body);
  EXPECT_EQ(r.code, 0);
  EXPECT_NE(r.out.find("lr: 0.25"), std::string::npos) << r.out;
  EXPECT_EQ(run({"--help"}, body).code, 0);
  EXPECT_EQ(run({"--help", "stage.lr"}, body).out,
            "stage.lr: learning rate (number above 0)\ndefault: 0.001\n");
  EXPECT_FALSE(worked);
  EXPECT_FALSE(fs::exists(dir_));
}

TEST_F(AppTest, ErrorsBecomeExitCodesAndOneMessage) {
  auto failing = [](ErrorKind kind) {
    return [kind](App&, AppConfig&) { fail(kind, "something is wrong"); };
  };
  for (auto [kind, code] : {std::pair{ErrorKind::usage, 2},
                            {ErrorKind::input, 2},
                            {ErrorKind::non_finite, 3},
                            {ErrorKind::memory, 4},
                            {ErrorKind::system, 1},
                            {ErrorKind::internal, 1}}) {
    Result r = run({}, failing(kind));
    EXPECT_EQ(r.code, code);
    EXPECT_EQ(r.err, "train: error: something is wrong\n");
  }
  EXPECT_EQ(run({}, [](App&, AppConfig&) { throw std::bad_alloc(); }).code, 4);
  EXPECT_EQ(run({}, [](App&, AppConfig&) { throw std::runtime_error("x"); }).code, 1);
  EXPECT_EQ(run({"stage.step=1"}, nothing).code, 2);
  EXPECT_EQ(run({"stage.step=1"}, nothing).err,
            "train: error: stage.step=1: stage.step: unknown key; did you mean 'steps'?\n");
  EXPECT_EQ(run({"--device", "gpu"}, nothing).code, 2);
  EXPECT_EQ(run({"--device", "cuda:99"}, nothing).code, 2);
  EXPECT_EQ(run({"--device", "cpu", "precision=tf32"}, nothing).code, 2);
  EXPECT_EQ(run({"--resume", "auto"}, nothing).code, 2);
}

TEST_F(AppTest, ResumingWithOtherSettingsIsRefusedWithinOneRun) {
  auto leave_checkpoint = [](App& app, AppConfig& config) {
    fs::create_directory(app.start_run(config).checkpoint(7));
    fail(ErrorKind::non_finite, "loss is NaN");
  };
  auto go_on = [](App& app, AppConfig& config) {
    EXPECT_EQ(app.start_run(config).resume_from()->filename(), "step-00000007");
    app.finish({});
  };
  EXPECT_EQ(run({out_dir_, "stage.lr=0.5"}, leave_checkpoint).code, 3);
  Result r = run({out_dir_, "stage.lr=0.25", "--resume", "auto"}, go_on);
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("\n  stage.lr: 0.5 -> 0.25\n"), std::string::npos) << r.err;
  AppConfig kept;
  read_config(read_yaml(dir_ / "config.resolved.yaml"), kept);
  EXPECT_EQ(kept.stage.lr, 0.5);

  std::string checkpoint = (dir_ / "ckpt/step-00000007").string();
  r = run({"out.dir=" + (folder_ / "y").string(), "stage.lr=0.25", "--resume", checkpoint}, go_on);
  EXPECT_EQ(r.code, 0);
  EXPECT_NE(r.err.find("changed since " + checkpoint + ":\n  stage.lr: 0.5 -> 0.25\n"), std::string::npos)
      << r.err;
  r = run({out_dir_, "stage.lr=0.5", "threads=2", "--resume", "auto"}, go_on);
  EXPECT_EQ(r.code, 0) << r.err;
}

// In a child, since the flag and the signal's handler are the process's.
TEST_F(AppTest, ASignalAsksToStopAndASecondOneKills) {
  for (bool twice : {false, true}) {
    pid_t child = fork();
    if (child == 0) {
      Result r = run({out_dir_, "out.overwrite=true"}, [&](App& app, AppConfig& config) {
        fs::create_directory(app.start_run(config).checkpoint(1));
        raise(SIGTERM);
        if (twice) raise(SIGTERM);
        if (!stop_requested()) _exit(77);
      });
      _exit(r.code == 1 && r.err.find("--resume auto") != std::string::npos ? 42 : 78);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (twice) {
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    } else {
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 42) << status;
    }
  }
}

TEST(Progress, Texts) {
  EXPECT_EQ(progress_text("train", 320, 1000, "images", 64.25, "loss 0.5"),
            "train: 320/1000 images (32 %), 64.2 images/s, 11 s left, loss 0.5");
  EXPECT_EQ(progress_text("train", 0, 1000, "images", 0, ""), "train: 0/1000 images (0 %)");
  EXPECT_EQ(progress_text("train", 1000, 1000, "steps", 0.25, ""),
            "train: 1000/1000 steps (100 %), 0.25 steps/s");
  EXPECT_EQ(duration_text(59.4), "59 s");
  EXPECT_EQ(duration_text(61), "1:01");
  EXPECT_EQ(duration_text(3723), "1:02:03");
}

TEST(Progress, PlainLinesWhenNotOnATerminal) {
  testing::internal::CaptureStderr();
  {
    Progress progress("profile", 2, "images");
    progress.update(1);
    progress.update(2);
    progress.finish("done");
  }
  std::string text = testing::internal::GetCapturedStderr();
  EXPECT_TRUE(text.starts_with("profile: 2/2 images (100 %)")) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos);
}

}  // namespace
}  // namespace occam
