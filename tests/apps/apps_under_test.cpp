#include "tests/apps/apps_under_test.h"

#include <cstdlib>

#include <algorithm>
#include <sstream>

namespace occam {
namespace fs = std::filesystem;

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

const std::vector<std::string>& all_apps() {
  static const std::vector<std::string> apps = [] {
    std::istringstream list(OCCAM_APPS);
    std::vector<std::string> names;
    for (std::string name; std::getline(list, name, ',');) names.push_back(name);
    return names;
  }();
  return apps;
}

std::string device_under_test() {
  const char* device = std::getenv("OCCAM_TEST_DEVICE");
  return device != nullptr ? device : "cpu";
}

fs::path binary_of(const std::string& app) { return fs::path(OCCAM_BIN_DIR) / app; }

Words tiny_data() {
  return {"data.name=synthetic", "data.images=60", "data.classes=3", "data.image_size=8", "data.workers=1"};
}

Words tiny_model() {
  return {"model.name=vit", "model.image_size=8", "model.patch=4",
          "model.dim=8",    "model.depth=2",      "model.heads=2"};
}

const std::vector<AppCase>& app_cases() {
  static const std::vector<AppCase> cases = [] {
    const Words forever{"data.images=100000000", "data.limit=0"};
    std::vector<AppCase> all{
        {"train", tiny_data() + tiny_model() + Words{"train.epochs=1", "train.batch=16"}, "model.checkpoint",
         false, Words{"train.epochs=100000", "train.save_every=1000"}, true},
        {"evaluate", tiny_data(), "model.checkpoint", true, forever, false},
        {"profile_sparsity", tiny_data(), "model.checkpoint", true, forever, false, false},
        {"distill",
         tiny_data() + Words{"distill.profile_images=12", "distill.runs=[{blocks: {sparsest: 1}}]",
                             "distill.controls=[no_op]", "distill.stage1.steps=2", "distill.stage1.batch=8",
                             "distill.stage2.steps=2", "distill.stage2.batch=8", "distill.before_images=12"},
         "distill.teacher.checkpoint", true, Words{"distill.stage1.steps=100000000", "save_every=1000"},
         true},
    };
    std::erase_if(all, [](const AppCase& c) {
      return std::find(all_apps().begin(), all_apps().end(), c.name) == all_apps().end();
    });
    return all;
  }();
  return cases;
}

std::string case_name(const testing::TestParamInfo<AppCase>& info) { return info.param.name; }

Words with(const Words& a, const Words& b) {
  auto key = [](const std::string& word) { return word.substr(0, word.find('=')); };
  Words out;
  for (const std::string& word : a)
    if (std::none_of(b.begin(), b.end(), [&](const std::string& other) { return key(other) == key(word); }))
      out.push_back(word);
  return out + b;
}

std::map<std::string, std::string> snapshot(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    files[fs::relative(entry.path(), folder).string()] =
        entry.is_directory() ? "a folder" : read_bytes(entry.path());
  return files;
}

void expect_failure(const std::string& app, const ProcessResult& result, int code, const Words& parts) {
  EXPECT_EQ(result.code, code) << result.err;
  const std::string head = app + ": error: ";
  size_t at = result.err.find(head);
  ASSERT_NE(at, std::string::npos) << "no '" << head << "' in: " << result.err;
  EXPECT_EQ(result.err.find(head, at + 1), std::string::npos) << "two errors: " << result.err;
  const std::string message = result.err.substr(at);
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << "expected '" << part << "' in: " << message;
  for (const char* raw : {"std::", "terminate", "basic_string", "json.exception", "filesystem error"})
    EXPECT_EQ(message.find(raw), std::string::npos) << "not a message for a user: " << message;
}

void expect_success(const ProcessResult& result) {
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.err.find(": error: "), std::string::npos) << result.err;
}

ProcessResult AppFixture::run(const std::string& app, const Words& arguments, ProcessOptions options) {
  return start(app, arguments, std::move(options))->wait();
}

std::unique_ptr<Process> AppFixture::start(const std::string& app, const Words& arguments,
                                           ProcessOptions options) {
  if (options.folder.empty()) options.folder = folder_.path();
  return std::make_unique<Process>(binary_of(app), arguments + Words{"--device", device_under_test()},
                                   options);
}

const std::string& AppFixture::checkpoint_bytes() {
  static const std::string bytes = [] {
    TempFolder folder;
    ProcessOptions options;
    options.folder = folder.path();
    ProcessResult result = run_process(
        binary_of("train"),
        tiny_data() + tiny_model() +
            Words{"train.epochs=1", "train.batch=16", "out.dir=x", "--device", device_under_test()},
        options);
    EXPECT_EQ(result.code, 0) << result.err;
    return read_bytes(folder / "x/model.safetensors");
  }();
  return bytes;
}

Words AppFixture::tiny_run(const AppCase& c) {
  if (!c.needs_checkpoint) return c.tiny;
  write_bytes(folder_ / "model.safetensors", checkpoint_bytes());
  return c.tiny + Words{c.checkpoint_key + "=model.safetensors"};
}

}  // namespace occam
