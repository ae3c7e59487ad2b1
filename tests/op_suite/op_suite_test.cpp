// One named test for each op, check and sample: "softmax.gradcheck/2x5x197".
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <map>

#include "core/device.h"
#include "core/error.h"
#include "core/grad_mode.h"
#include "suite.h"

namespace {

using namespace occam;

class Case : public testing::Test {
 public:
  Case(const spec::Spec& spec, const spec::Sample& sample, const suite::Check& check)
      : spec_(spec), sample_(sample), check_(check) {}
  void TestBody() override {
    std::string problem = check_.run(spec_, sample_);
    if (problem.starts_with("skip:")) GTEST_SKIP() << problem.substr(6);
    EXPECT_EQ(problem, "");
  }

 private:
  const spec::Spec& spec_;
  const spec::Sample& sample_;
  const suite::Check& check_;
};

class BadCase : public testing::Test {
 public:
  explicit BadCase(const spec::Bad& bad) : bad_(bad) {}
  void TestBody() override {
    try {
      bad_.call();
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(bad_.text), std::string::npos) << "got: " << e.what();
      return;
    }
    FAIL() << "no error; expected: " << bad_.text;
  }

 private:
  const spec::Bad& bad_;
};

/// Cases that cannot apply are not registered, so that the count printed is of checks made.
bool applies(const suite::Check& check, const spec::Spec& spec, const spec::Sample& sample) {
  std::string name = check.name;
  if (name == "repeat" || name.ends_with("frozen") || name == "cuda_repeat")
    if (!spec.nondeterministic_reason().empty()) return false;
  if (name.starts_with("cuda_captured") && !spec.uncapturable_reason().empty()) return false;
  if (check.on_gpu && (!cuda_available() || !sample.has_cuda)) return false;
  if (!sample.has_half && name.ends_with("bf16")) return false;
  if (name == "composite") return bool(sample.composite);
  if (name.ends_with("unused")) {
    NoGrad no_grad;
    if (sample.call(suite::make_inputs(spec, sample, DType::f32, kCPU, false)).size() < 2) return false;
  }
  int64_t elements = 0;
  for (const spec::Input& input : sample.inputs) elements += input.is_absent ? 0 : input.shape.numel();
  if (name == "gradcheck" && elements == 0) return false;
  bool gradient = name.find("grad") != std::string::npos && name != "no_grad";
  return sample.differentiable || !(gradient || name.ends_with("accumulate") || name.ends_with("frozen") ||
                                    name == "changed" || name.ends_with("unused"));
}

int register_all(bool small_only) {
  int count = 0;
  for (const spec::Spec& spec : spec::spec_table()) {
    for (const suite::Check& check : suite::all_checks())
      for (const spec::Sample& sample : spec.samples()) {
        if (!applies(check, spec, sample) || (small_only && !sample.is_small)) continue;
        testing::RegisterTest(spec.folder().c_str(), (std::string(check.name) + "/" + sample.name).c_str(),
                              nullptr, nullptr, __FILE__, __LINE__,
                              [&] { return static_cast<testing::Test*>(new Case(spec, sample, check)); });
        ++count;
      }
    for (const spec::Bad& bad : spec.bads()) {
      testing::RegisterTest(spec.folder().c_str(), ("bad/" + bad.name).c_str(), nullptr, nullptr, __FILE__,
                            __LINE__, [&] { return static_cast<testing::Test*>(new BadCase(bad)); });
      ++count;
    }
  }
  return count;
}

/// Collects results by op for the records of GPU runs.
class Recorder : public testing::EmptyTestEventListener {
 public:
  struct Count {
    int passed = 0, failed = 0;
    double seconds = 0;
  };
  void OnTestEnd(const testing::TestInfo& info) override {
    if (std::string(info.name()).find("cuda_") != 0) return;
    Count& c = counts_[info.test_suite_name()];
    ++(info.result()->Passed() ? c.passed : c.failed);
    c.seconds += double(info.result()->elapsed_time()) / 1000;
  }
  /// One <op>.json for each op all of whose GPU checks passed. False when one could not be written.
  bool write(const std::string& folder) const {
    std::filesystem::create_directories(folder);
    std::string script = OCCAM_SOURCE_DIR "/tests/tools/stale_records.sh";
    for (const auto& [op, count] : counts_) {
      if (count.failed > 0) continue;
      std::string hash;
      FILE* pipe = popen((script + " hash " + op).c_str(), "r");
      for (int c; pipe && (c = fgetc(pipe)) != EOF && c != '\n';) hash += char(c);
      if (pipe) pclose(pipe);
      FILE* out = fopen((folder + "/" + op + ".json").c_str(), "w");
      if (out == nullptr) return perror(folder.c_str()), false;
      fprintf(
          out,
          "{\"op\": \"%s\", \"sources\": \"%s\", \"device\": \"%s\", \"passed\": %d, \"seconds\": %.2f}\n",
          op.c_str(), hash.c_str(), device_name().c_str(), count.passed, count.seconds);
      if (fclose(out) != 0) return perror(folder.c_str()), false;
    }
    return true;
  }

 private:
  std::map<std::string, Count> counts_;
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  bool small_only = false;
  std::string records;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    if (argument == "--small")
      small_only = true;
    else if (argument.starts_with("--records="))
      records = argument.substr(10);
    else
      return std::fprintf(stderr, "unknown argument %s; known: --small, --records=FOLDER\n", argv[i]), 2;
  }
  int count = register_all(small_only);
  std::printf("op suite: %zu folders, %d cases of op x check x sample%s\n", spec::spec_table().size(), count,
              cuda_available() ? ", GPU checks included" : " (no GPU: CPU checks only)");
  auto* recorder = new Recorder;  // owned by GoogleTest
  testing::UnitTest::GetInstance()->listeners().Append(recorder);
  int result = RUN_ALL_TESTS();
  if (records.empty()) return result;
  if (!cuda_available()) return std::fprintf(stderr, "--records needs a GPU\n"), 2;
  return recorder->write(records) ? result : 1;
}
