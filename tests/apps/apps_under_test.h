#pragma once
// The apps as processes, what a tiny run of each takes, and what every failure must look like.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/rng.h"
#include "tests/apps/process.h"
#include "tests/core/temp_folder.h"

namespace occam {

using Words = std::vector<std::string>;
Words operator+(Words a, const Words& b);

/// Every app that the build makes.
const std::vector<std::string>& all_apps();
std::filesystem::path binary_of(const std::string& app);
/// Where the apps compute: $OCCAM_TEST_DEVICE (cuda, cuda:1, ...), by default the CPU.
std::string device_under_test();

/// An app whose arguments are known here, for checks that need a whole run.
struct AppCase {
  std::string name;
  Words tiny;                  // a run of a second at most, without out.dir and the checkpoint
  std::string checkpoint_key;  // the setting that takes a model's file
  bool needs_checkpoint;       // the tiny run has one; false: the setting may be left out
  Words slow;                  // over `tiny`: a run of minutes, for signals and locks
  bool resumes;                // --resume goes on where it was stopped
  bool uses_labels = true;     // and so refuses data of more classes than the model has
};
const std::vector<AppCase>& app_cases();
inline void PrintTo(const AppCase& c, std::ostream* out) { *out << c.name; }
std::string case_name(const testing::TestParamInfo<AppCase>& info);

/// Synthetic images and a vision transformer of 2,000 weights.
Words tiny_data();
Words tiny_model();

/// `b` over `a`: what `b` sets is left out of `a`, since a key may not be set twice.
Words with(const Words& a, const Words& b);

/// Every file below `folder` with its bytes, and every folder.
std::map<std::string, std::string> snapshot(const std::filesystem::path& folder);

/// One message on the standard error, in the form `APP: error: ...`, with all of `parts` in it, and this exit
/// code.
void expect_failure(const std::string& app, const ProcessResult& result, int code, const Words& parts);
void expect_success(const ProcessResult& result);

/// A random pause before the `round`-th interruption of a run. On average it grows by a twelfth a round:
/// rounds that are stopped before anything new is kept end on any machine, however busy, and a quick one
/// still sees many of them.
inline void pause_before_stop(Rng& rng, int round) {
  const double first = device_under_test() == "cpu" ? 5'000 : 100'000;  // microseconds; CUDA starts slowly
  usleep(useconds_t(rng.uniform(0, first * std::pow(13.0 / 12, round))));
}

/// A folder to work in, and the apps.
class AppFixture : public testing::Test {
 protected:
  /// Runs in `folder_`, on the CPU.
  ProcessResult run(const std::string& app, const Words& arguments, ProcessOptions options = {});
  std::unique_ptr<Process> start(const std::string& app, const Words& arguments, ProcessOptions options = {});

  /// A trained file of tiny_model(), made once.
  static const std::string& checkpoint_bytes();
  /// The tiny run of a case; when it needs a checkpoint, on checkpoint_bytes() as model.safetensors.
  Words tiny_run(const AppCase& c);

  TempFolder folder_;
};

}  // namespace occam
