// apps/bench/compare.py with a peer that needs no PyTorch: what is kept, what stops it, what the table says.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/io/json.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace {

namespace fs = std::filesystem;

/// Agrees, and is always as fast as it says; notes what it was asked. One mode fails, and infer_B_1 never
/// ends.
constexpr const char* kPeer = R"(import json, sys, time
sys.path.insert(0, "SOURCE/apps/bench")
from serve import serve


def out(**line):
    print(json.dumps(line), flush=True)


def main(words):
    with open("asked", "a") as asked:
        asked.write(" ".join(words) + "\n")
    if words[0] == "--serve":
        return serve(words[1], main)
    if words[0] == "--check":
        modes = {row: ["slow", "quick", "broken", "max-autotune"] for row in words[1:]}
        return out(who="torch", what="peer", torch="9.9", timm="8.8", modes=modes)
    if words[0] == "agree":
        return out(who="torch", row="agree", what="agree", depth=2, f32=1e-7, bf16=BF16)
    row, mode = words[0], words[2]
    if mode == "broken":
        out(who="torch", row=row, what="error", mode=mode, err="no")
        return 1
    print("compiling")  # what is no JSON is passed over
    out(what="ready")
    ms = 100 if mode == "quick" else 200
    for _ in sys.stdin:
        if row == "infer_B_1" and mode == "quick":
            time.sleep(1000)
        out(who="torch", row=row, what="x", mode=mode, ms=ms, samples_ms=[ms], peak_gb=1)
        out(what="timed")


sys.exit(main(sys.argv[1:]))
)";

class Compare : public AppFixture {
 protected:
  void SetUp() override {
    if (run_process("/usr/bin/env", {"python3", "-c", ""}).code != 0) GTEST_SKIP() << "there is no python3";
    make_peer("1e-3");
  }
  void make_peer(const std::string& distance) {
    std::string text = kPeer;
    text.replace(text.find("BF16"), 4, distance);
    text.replace(text.find("SOURCE"), 6, OCCAM_SOURCE_DIR);
    write_bytes(folder_ / "peer", text);
  }
  ProcessResult compare(const Words& arguments, const std::string& peer = "python3 peer") {
    ProcessOptions options;
    options.folder = folder_.path();
    return run_process("/usr/bin/env",
                       Words{"python3", OCCAM_SOURCE_DIR "/apps/bench/compare.py", "--bench",
                             binary_of("bench").string(), "--peer", peer, "--tiny", "--samples", "3",
                             "--sample-s", "0", "--out", "out", "--device", device_under_test()} +
                           arguments,
                       options);
  }
  std::vector<Json> results(const std::string& key = "", const Json& value = {}) {
    std::vector<Json> lines;
    std::istringstream text(read_bytes(folder_ / "out/results.jsonl"));
    for (std::string line; std::getline(text, line);) {
      if (line.empty() || line.back() != '}') continue;
      Json json = parse_json(line, "results");
      if (key.empty() || (json.contains(key) && json[key] == value)) lines.push_back(json);
    }
    return lines;
  }
  std::string asked() { return read_bytes(folder_ / "asked"); }
};

TEST_F(Compare, AlternatesKeepsEveryLineAndMakesATable) {
  const ProcessResult result = compare({"--only", "train_S_256,infer_S_1"});
  ASSERT_EQ(result.code, 0) << result.err;
  std::vector<std::string> order;
  for (const Json& line : results("row", "train_S_256"))
    if (line.contains("ms")) order.push_back(line["who"].get<std::string>() + line["round"].dump());
  // Three modes, then only the best.
  EXPECT_EQ(order, (Words{"occam1", "torch1", "torch1", "torch1", "occam2", "torch2", "occam3"}));
  EXPECT_EQ(results("what", "row_done").size(), 2u);
  EXPECT_EQ(results("what", "error").size(), 2u);  // one mode that fails costs no row
  const std::string table = read_bytes(folder_ / "out/table.md");
  EXPECT_EQ(table, result.out);
  for (const char* part : {"| train_S_256 | ", "| quick 100 | ", "1.25x", "memory met", "torch 9.9"})
    EXPECT_NE(table.find(part), std::string::npos) << part << " is missing in\n" << table;
}

TEST_F(Compare, JudgesARowByTheModeItNames) {
  ASSERT_EQ(compare({"--only", "profile_all_S_64"}).code, 0);
  // 'eager' is not among this peer's modes: its best is taken.
  EXPECT_NE(read_bytes(folder_ / "out/table.md").find("| quick 100 | "), std::string::npos);
  EXPECT_NE(read_bytes(folder_ / "out/table.md").find("of own inference"), std::string::npos);
}

TEST_F(Compare, TimesNothingWhereOutputsDiffer) {
  make_peer("0.5");
  const ProcessResult result = compare({"--only", "infer_S_1"});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.err.find("the outputs of the two sides differ"), std::string::npos) << result.err;
  EXPECT_EQ(results("row", "infer_S_1").size(), 0u);
}

TEST_F(Compare, ResumesAndLosesNothing) {
  ASSERT_EQ(compare({"--only", "infer_S_1"}).code, 0);
  const std::string before = read_bytes(folder_ / "out/results.jsonl");
  write_bytes(folder_ / "out/results.jsonl",
              before + R"({"who": "occam", "row": "inf)");  // a kill while writing
  const ProcessResult result = compare({"--only", "infer_S_1,infer_T_1", "--resume"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("not a whole line of JSON"), std::string::npos) << result.err;
  const std::string after = read_bytes(folder_ / "out/results.jsonl");
  EXPECT_EQ(after.substr(0, before.size()), before);
  EXPECT_EQ(results("what", "row_done").size(), 2u);
  EXPECT_EQ(results("what", "begin").size(), 1u);
  EXPECT_EQ(results("what", "agree").size(), 1u);
  // Without --resume the row is timed again, as another run.
  ASSERT_EQ(compare({"--only", "infer_S_1"}).code, 0);
  EXPECT_EQ(results("what", "begin").size(), 2u);
  EXPECT_EQ(results("what", "row_done").size(), 3u);
}

TEST_F(Compare, ResumesWithOtherModesOfARow) {
  ASSERT_EQ(compare({"--only", "infer_S_1", "--rounds", "1", "--modes", "slow"}).code, 0);
  const ProcessResult result =
      compare({"--only", "infer_S_1", "--rounds", "1", "--modes", "quick", "--resume"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(results("what", "begin").size(), 1u);
  EXPECT_EQ(results("what", "row_done").size(), 2u);
  for (const char* part :
       {"| quick 100 | ", "| infer_S_1 | quick 100, slow 200 |", "--modes slow", "--resume"})
    EXPECT_NE(result.out.find(part), std::string::npos) << part << " is missing in\n" << result.out;
}

TEST_F(Compare, KeepsWhatASideSaidBeforeItsTimeWasUp) {
  const ProcessResult result = compare({"--only", "infer_B_1", "--rounds", "1", "--timeout", "4"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("took more than 4 s"), std::string::npos) << result.err;
  EXPECT_NE(result.out.find("| slow 200 | "), std::string::npos) << result.out;
}

TEST_F(Compare, TunesOnlyTheRowsItIsAskedTo) {
  ASSERT_EQ(compare({"--only", "infer_S_1,infer_T_1", "--rounds", "1", "--autotune", "infer_T_1"}).code, 0);
  EXPECT_NE(asked().find("infer_T_1 --modes max-autotune"), std::string::npos) << asked();
  EXPECT_EQ(asked().find("infer_S_1 --modes max-autotune"), std::string::npos) << asked();
}

TEST_F(Compare, BeginsNoRowThatTheBudgetDoesNotHold) {
  ASSERT_EQ(compare({"--only", "infer_S_1", "--rounds", "1"}).code, 0);
  const ProcessResult result =
      compare({"--only", "infer_T_1,infer_S_1", "--rounds", "1", "--budget", "0.0001"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("the budget ends before infer_T_1; go on with --resume"), std::string::npos)
      << result.err;
  EXPECT_EQ(results("what", "row_done").size(), 1u);
  EXPECT_NE(result.out.find("| infer_S_1 |"), std::string::npos);  // of the run before
}

TEST_F(Compare, TimesOursAloneWithoutAPeer) {
  const ProcessResult result = compare({"--only", "infer_S_1"}, "false");
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("no peer, only ours is timed"), std::string::npos) << result.err;
  EXPECT_EQ(results("who", "torch").size(), 0u);
  EXPECT_NE(result.out.find("| infer_S_1 | "), std::string::npos);
}

TEST_F(Compare, ABudgetOfNothingBeginsNoRow) {
  const ProcessResult result = compare({"--only", "infer_S_1", "--budget", "0", "--no-peer"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("the budget ends before infer_S_1"), std::string::npos) << result.err;
  EXPECT_EQ(results("row", "infer_S_1").size(), 0u);
}

TEST_F(Compare, TimesARowThatIsNamedTwiceOnce) {
  ASSERT_EQ(compare({"--only", "infer_S_1,infer_S_1", "--rounds", "1", "--no-peer"}).code, 0);
  EXPECT_EQ(results("what", "row_done").size(), 1u);
}

TEST_F(Compare, RefusesWhatItDoesNotKnow) {
  auto refused = [&](const Words& arguments, const std::string& part) {
    const ProcessResult result = compare(arguments);
    EXPECT_EQ(result.code, 2) << result.out << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_EQ(result.err.find("Traceback"), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  };
  refused({"--only", "infer_S_1,infer_X"}, "there is no row 'infer_X'");
  refused({"--only", ","}, "--only: it names nothing");
  refused({"--autotune", "infer_X"}, "there is no row 'infer_X'");
  refused({"--at-once", "0"}, "--at-once: 0 is not at least 1");
  refused({"--at-once=-1"}, "--at-once: -1 is not at least 1");
  refused({"--samples", "0"}, "--samples: 0 is not from 3 to 1000");
  refused({"--rounds", "0"}, "--rounds: 0 is not at least 1");
  for (const char* budget : {"nan", "inf", "-1"})
    refused({std::string("--budget=") + budget}, std::string(budget) + " is not at least 0");
  EXPECT_FALSE(fs::exists(folder_ / "out"));
  // Modes are the peer's: quick is one, of some row.
  refused({"--only", "infer_S_1", "--modes", "quick,nope"}, "no row has a mode 'nope'; modes: slow, quick");
  EXPECT_EQ(results("row", "infer_S_1").size(), 0u);
  fs::remove_all(folder_ / "out");
  write_bytes(folder_ / "out", "");
  refused({"--only", "infer_S_1"}, "--out out: ");
}

}  // namespace
}  // namespace occam
