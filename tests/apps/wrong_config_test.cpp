// Wrong command lines and configs, for every app: one message that says what, where and what to do, exit 2,
// and no file touched.
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/io/json.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace {

struct WrongLine {
  const char* name;
  Words arguments;
  std::string config;  // what config.yaml holds; empty: there is none
  Words parts;
};

std::string nested(int depth) {
  return std::string(size_t(depth), '[') + "1" + std::string(size_t(depth), ']');
}

const std::vector<WrongLine>& wrong_lines() {
  static const std::vector<WrongLine> lines{
      {"unknown key", {"wombat=1"}, "", {"wombat=1: wombat: unknown key", "known: "}},
      {"slip of the keyboard", {"out.dri=x"}, "", {"out.dri: unknown key; did you mean 'dir'?"}},
      {"unknown key in a file",
       {},
       "threads: 2\nout:\n  dri: x\n",
       {"config.yaml:3:3: out.dri: unknown key"}},
      {"key twice on the line", {"threads=1", "threads=2"}, "", {"'threads' is set twice", "remove one"}},
      {"key and its section",
       {"out.dir=x", "out={dir: y}"},
       "",
       {"'out' is set twice", "remove one, or set the keys of 'out' one by one"}},
      {"key twice in a file",
       {},
       "threads: 1\nprecision: f32\nthreads: 2\n",
       {"config.yaml:3:1: key 'threads' is there twice (first at config.yaml:1:1); remove one"}},
      {"wrong type", {"threads=many"}, "", {"threads", "expected a whole number", "many"}},
      {"wrong type in a file",
       {},
       "\nthreads: [1, 2]\n",
       {"config.yaml:2:", "threads", "expected", "a list"}},
      {"scalar for a section", {"out=3"}, "", {"out", "a mapping with keys dir, overwrite"}},
      {"text for a switch", {"out.overwrite=perhaps"}, "", {"out.overwrite", "true or false", "perhaps"}},
      {"out of range", {"threads=-1"}, "", {"threads", "from 0 to 4096", "-1"}},
      {"past 64 bits", {"threads=99999999999999999999"}, "", {"threads", "from 0 to 4096"}},
      {"not a choice", {"precision=f23"}, "", {"precision", "f32", "f23"}},
      {"no such config", {"missing.yaml"}, "", {"missing.yaml", "No such file"}},
      {"not YAML", {}, "threads: [1, 2\nout: {dir: x\n", {"config.yaml:", "not valid YAML"}},
      {"bytes",
       {},
       std::string("\x7f"
                   "ELF\0\0\x01\xff\xfe",
                   9),
       {"config.yaml"}},
      {"a list", {}, "- threads\n- 1\n", {"config.yaml:1:1", "expected a mapping", "a list"}},
      {"two documents", {}, "threads: 1\n---\nthreads: 2\n", {"config.yaml: holds 2 documents"}},
      {"very deep", {}, "out: " + nested(100'000), {"config.yaml"}},
      {"alias to itself", {}, "out: &a\n  dir: *a\n", {"config.yaml:"}},
      {"two configs", {"config.yaml", "other.yaml"}, "threads: 1\n", {"two config files", "give one"}},
      {"unknown option", {"--devize", "cpu"}, "", {"unknown option --devize; did you mean '--device'?"}},
      {"option twice", {"--json", "--json"}, "", {"option --json is given twice"}},
      {"a word", {"nonsense"}, "", {"'nonsense' is no ", "config file (.yaml) and no key=value", "--help"}},
      {"empty key", {"=1"}, "", {"'=1' does not name a key"}},
  };
  return lines;
}

/// The words of a line as a shell splits them: at spaces outside single quotes.
Words shell_words(const std::string& line) {
  Words words;
  bool quoted = false, within = false;
  for (char c : line) {
    if (c == '\'') {
      quoted = !quoted;
    } else if (c == ' ' && !quoted) {
      within = false;
    } else {
      if (!within) words.emplace_back();
      within = true;
      words.back() += c;
    }
  }
  return words;
}

class EveryApp : public AppFixture, public testing::WithParamInterface<std::string> {};
INSTANTIATE_TEST_SUITE_P(Apps, EveryApp, testing::ValuesIn(all_apps()),
                         [](const auto& info) { return info.param; });

TEST_P(EveryApp, RefusesWrongCommandLinesAndConfigs) {
  for (const WrongLine& line : wrong_lines()) {
    SCOPED_TRACE(line.name);
    Words arguments = line.arguments;
    std::filesystem::remove(folder_ / "config.yaml");
    if (!line.config.empty()) write_bytes(folder_ / "config.yaml", line.config);
    if (!line.config.empty() && arguments.empty()) arguments = {"config.yaml"};
    auto before = snapshot(folder_.path());
    expect_failure(GetParam(), run(GetParam(), arguments), 2, line.parts);
    EXPECT_TRUE(snapshot(folder_.path()) == before) << "files were made or changed";
  }
}

TEST_P(EveryApp, RefusesAConfigThatIsNoFile) {
  std::filesystem::create_directory(folder_ / "folder.yaml");
  expect_failure(GetParam(), run(GetParam(), {"folder.yaml"}), 2, {"folder.yaml"});
  write_bytes(folder_ / "large.yaml", std::string(5 << 20, '#'));
  expect_failure(GetParam(), run(GetParam(), {"large.yaml"}), 2, {"large.yaml", "too large for a config"});
}

TEST_P(EveryApp, TellsWhenItCannotPrint) {
  ProcessOptions full;
  full.out = "/dev/full";
  for (const char* option : {"--help", "--print-config"})
    expect_failure(GetParam(), run(GetParam(), {option}, full), 1, {"cannot write to the standard output"});
}

TEST_P(EveryApp, HelpNamesEveryKeyAndItsExamplesAreRight) {
  ProcessResult help = run(GetParam(), {"--help"});
  expect_success(help);
  for (const char* part : {"Usage: ", "Exit codes: ", "Examples:", "--print-config", "overwrite:"})
    EXPECT_NE(help.out.find(part), std::string::npos) << part;
  std::istringstream text(help.out.substr(help.out.find("Examples:")));
  std::string line;
  std::getline(text, line);
  int examples = 0;
  while (std::getline(text, line) && line.starts_with("  ")) {
    SCOPED_TRACE(line);
    Words arguments = shell_words(line);
    ASSERT_EQ(arguments.front(), GetParam());
    arguments.erase(arguments.begin());
    // A config that comes with the app is there; any other stands for the user's.
    if (!arguments.empty() && arguments[0].ends_with(".yaml")) {
      std::filesystem::path own = std::filesystem::path(OCCAM_SOURCE_DIR) / arguments[0];
      if (arguments[0].find('/') != std::string::npos) {
        EXPECT_TRUE(std::filesystem::exists(own)) << own;
        arguments[0] = own.string();
      } else {
        arguments.erase(arguments.begin());
      }
    }
    expect_success(run(GetParam(), arguments + Words{"--print-config"}));
    ++examples;
  }
  EXPECT_GT(examples, 0);
}

TEST_P(EveryApp, PrintedConfigsAreReadBackTheSame) {
  ProcessResult printed = run(GetParam(), {"threads=3", "--print-config"});
  expect_success(printed);
  write_bytes(folder_ / "config.yaml", printed.out);
  ProcessResult again = run(GetParam(), {"config.yaml", "--print-config"});
  expect_success(again);
  EXPECT_EQ(again.out, printed.out);
  EXPECT_NE(printed.out.find("threads: 3"), std::string::npos);
}

class TinyRun : public AppFixture, public testing::WithParamInterface<AppCase> {};
INSTANTIATE_TEST_SUITE_P(Apps, TinyRun, testing::ValuesIn(app_cases()), case_name);

TEST_P(TinyRun, ChecksWithoutTouchingAnythingAndPrintsItsSummary) {
  Words arguments = tiny_run(GetParam()) + Words{"out.dir=x"};
  auto before = snapshot(folder_.path());
  expect_success(run(GetParam().name, arguments + Words{"--check"}));
  EXPECT_TRUE(snapshot(folder_.path()) == before);
  ProcessResult result = run(GetParam().name, arguments + Words{"--json"});
  expect_success(result);
  EXPECT_TRUE(Json::parse(result.out, nullptr, false).is_object()) << result.out;
  EXPECT_EQ(result.out, read_bytes(folder_ / "x/summary.json"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x.lock"));
}

TEST_P(TinyRun, RefusesAFinishedRunAndReplacesItWhenAsked) {
  Words arguments = tiny_run(GetParam()) + Words{"out.dir=x"};
  expect_success(run(GetParam().name, arguments));
  auto before = snapshot(folder_.path());
  expect_failure(GetParam().name, run(GetParam().name, arguments), 2,
                 {"x holds a finished run", "out.overwrite=true"});
  EXPECT_TRUE(snapshot(folder_.path()) == before);
  expect_success(run(GetParam().name, arguments + Words{"out.overwrite=true"}));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x.partial"));
}

}  // namespace
}  // namespace occam
