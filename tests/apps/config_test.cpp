#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "apps/common/yaml.h"
#include "core/config_visit.h"
#include "core/rng.h"
#include "tests/apps/example_config.h"
#include "tests/core/expect_error.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace {

ExampleConfig read(const std::string& text) {
  ExampleConfig config;
  read_config(parse_yaml(text, "c.yaml"), config);
  return config;
}

std::string resolved(const ExampleConfig& config) { return dump_yaml(describe_config(config)); }

TEST(Config, ReadsEverything) {
  ExampleConfig c = read(R"(
model:
  name: vit
  checkpoint: "a b.safetensors"
  replace:
    - {blocks: [10, 11], with: identity}
    - blocks: {sparsest: 2}
      options: {width: 96, depth: 1.5}
stage: {steps: 7, lr: 1e-4, clip: 1}
keys: hoyer
mean: [0, 0.5, 1]
flags: [true, false]
seed: 18446744073709551615
workers: 0
shuffle: false
)");
  EXPECT_EQ(c.model.name, "vit");
  EXPECT_EQ(c.model.checkpoint, "a b.safetensors");
  ASSERT_EQ(c.model.replace.size(), 2u);
  EXPECT_EQ(c.model.replace[0].blocks.list, (std::vector<int64_t>{10, 11}));
  EXPECT_EQ(c.model.replace[0].with, "identity");
  EXPECT_EQ(c.model.replace[1].blocks.sparsest, 2);
  EXPECT_EQ(c.model.replace[1].options, (std::map<std::string, double>{{"width", 96}, {"depth", 1.5}}));
  EXPECT_EQ(c.stage.steps, 7);
  EXPECT_EQ(c.stage.lr, 1e-4);
  EXPECT_EQ(c.stage.clip, 1.0);
  EXPECT_EQ(c.keys, std::vector<std::string>{"hoyer"});
  EXPECT_EQ(c.mean, (std::vector<float>{0, 0.5f, 1}));
  EXPECT_EQ(c.flags, (std::vector<bool>{true, false}));
  EXPECT_EQ(c.seed, UINT64_MAX);
  EXPECT_EQ(c.workers, 0);
  EXPECT_FALSE(c.shuffle);
}

TEST(Config, WhatIsNotNamedKeepsItsDefault) {
  for (std::string text : {"", "# only a comment\n", "stage:\n", "{}"}) {
    EXPECT_EQ(resolved(read(text)), resolved(ExampleConfig{})) << text;
  }
  EXPECT_EQ(read("stage: {steps: 3}").stage.lr, 1e-3);
}

TEST(Config, ShorthandAndSingleValuesStandForTheLongForm) {
  ExampleConfig c = read("model: vit");
  EXPECT_EQ(c.model.name, "vit");
  c = read("model: {replace: {blocks: 3, with: identity}}");
  ASSERT_EQ(c.model.replace.size(), 1u);
  EXPECT_EQ(c.model.replace[0].blocks.list, std::vector<int64_t>{3});
}

TEST(Config, TheResolvedFileReadsBackTheSame) {
  ExampleConfig c = read("{stage: {lr: 0.1, clip: 3.3333333333333335e-07}, keys: [], mean: [0.1]}");
  c.model.replace.resize(2);
  c.model.replace[1].blocks.list = {1, 2};
  c.model.replace[1].options["x"] = 0.1;
  for (std::string text :
       {"", "null", "true", "10", "1e5", "a: b", "#x", "- y", "\"q\"", "line\nbreak\t\\", "é", "~"}) {
    c.model.checkpoint = text;
    EXPECT_EQ(resolved(read(resolved(c))), resolved(c));
    EXPECT_EQ(read(resolved(c)).model.checkpoint, text);
  }
  EXPECT_EQ(read(resolved(c)).stage.clip, 3.3333333333333335e-07);
  EXPECT_EQ(read(resolved(c)).model.replace[1].options["x"], 0.1);
  // With help behind the keys it is still the same config.
  EXPECT_EQ(resolved(read(dump_yaml(describe_config(c), true))), resolved(c));
}

TEST(Config, GoesThroughJson) {
  ExampleConfig c = read(
      "{model: {checkpoint: '10', replace: [{blocks: [1], options: {a: 2}}]}, seed: 18446744073709551615}");
  Json json = config_to_json(describe_config(c));
  EXPECT_EQ(json["model"]["checkpoint"], "10");
  EXPECT_EQ(json["seed"], UINT64_MAX);
  EXPECT_TRUE(json["stage"]["clip"].is_null());
  ExampleConfig back;
  read_config(config_from_json(parse_json(dump_json(json), "t"), "t"), back);
  EXPECT_EQ(resolved(back), resolved(c));
}

void refused(const std::string& text, const std::string& message) {
  EXPECT_OCCAM_ERROR(read(text), ErrorKind::usage, message);
}

TEST(Config, UnknownKeysNameTheNearest) {
  refused("stage:\n  step: 3\n", "c.yaml:2:3: stage.step: unknown key; did you mean 'steps'?");
  refused("stage: {zzz: 3}", "c.yaml:1:9: stage.zzz: unknown key; known: steps, lr, clip");
  refused("modle: {}", "did you mean 'model'?");
  refused("model: {replace: [{}, {wiht: x}]}",
          "c.yaml:1:24: model.replace.1.wiht: unknown key; did you mean 'with'?");
}

TEST(Config, WrongTypesSayWhatWasFound) {
  refused("stage:\n  steps: many",
          "c.yaml:2:10: stage.steps: expected a whole number at least 1, found 'many'");
  refused("stage: {steps: 1.5}", "found '1.5'");
  refused("stage: {steps: \"3\"}", "found the text \"3\"");
  refused("stage: {steps: [3]}", "found a list");
  refused("stage: {steps: }", "found nothing");
  refused("stage: {lr: fast}", "c.yaml:1:13: stage.lr: expected a number above 0, found 'fast'");
  refused("stage: {lr: .nan}", "expected a number");
  refused("stage: {lr: 1e999}", "expected a number");
  refused("stage: 5", "expected a mapping with keys steps, lr, clip, found '5'");
  refused("[1]", "c.yaml:1:1: expected a mapping");
  refused("shuffle: yes", "shuffle: expected true or false, found 'yes'");
  refused("model: {checkpoint: }", "model.checkpoint: expected a text, found nothing");
  refused("model: {checkpoint: {a: b}}", "found a mapping");
  refused("model: {replace: {options: [1]}}", "model.replace.options: expected a mapping, found a list");
}

TEST(Config, RangesAndChoices) {
  refused("stage: {steps: 0}", "stage.steps: expected a whole number at least 1, found '0'");
  refused("stage: {lr: 0}", "above 0, found '0'");
  refused("stage: {lr: -1}", "above 0, found '-1'");
  refused("stage: {clip: 0}", "above 0, found '0'");
  refused("mean: [0.5, 2]", "c.yaml:1:13: mean.1: expected a number from 0 to 1, found '2'");
  refused("workers: 65", "workers: expected a whole number from 0 to 64, found '65'");
  refused("workers: 99999999999", "found '99999999999'");
  refused("stage: {steps: 9223372036854775808}", "found '9223372036854775808'");
  refused("seed: -1", "seed: expected a whole number");
  refused("keys: [entropy, ginni]", "keys.1: expected one of entropy, gini, hoyer (gini?), found 'ginni'");
  refused("model: {replace: {with: lstm}}",
          "model.replace.with: expected one of bilstm, identity, attention");
}

TEST(Config, AStructMayCheckItself) {
  refused("model:\n  replace:\n    - blocks: {list: [1], sparsest: 2}",
          "c.yaml:3:15: model.replace.0.blocks: give either a list or 'sparsest'");
}

TEST(Config, BadYaml) {
  refused("a: [1, 2", "c.yaml:1:1: not valid YAML");
  refused("seed: 1\nstage: {}\nseed: 2\n", "c.yaml:3:1: key 'seed' is there twice (first at c.yaml:1:1)");
  refused("{[1]: 2}", "a key must be a text");
  refused("a: 1\n---\nb: 2\n", "2 documents");
  refused("stage: *nowhere", "not valid YAML");
  refused("&a [*a]", "nested deeper");
  std::string bomb = "x0: &x0 [1]\n";
  for (int i = 1; i < 30; ++i) bomb += fmt::format("x{0}: &x{0} [*x{1}, *x{1}]\n", i, i - 1);
  refused(bomb, "more than");
  refused(std::string(5000, '['), "c.yaml:1:");
  EXPECT_OCCAM_ERROR(read_yaml("/nonexistent/c.yaml"), ErrorKind::usage, "/nonexistent/c.yaml");
}

// Whatever the text, a config is read or an Error is thrown.
TEST(Config, MutatedFilesNeverDoWorseThanAnError) {
  const std::string whole = dump_yaml(describe_config(read("{model: {replace: [{blocks: [1, 2]}]}}")), true);
  const std::string alphabet = "0123456789-.eE[]{}:,#&*!|>'\"%@?~ \n\t\\anul\x01\xff";
  Rng rng(1, "config mutations");
  int accepted = 0, refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text = whole;
    for (int64_t change = 1 + rng.below(3); change > 0; --change) {
      size_t at = size_t(rng.below(int64_t(text.size())));
      char other = alphabet[size_t(rng.below(int64_t(alphabet.size())))];
      switch (rng.below(4)) {
        case 0:
          text[at] = other;
          break;
        case 1:
          text.insert(at, 1, other);
          break;
        case 2:
          text.erase(at, size_t(1 + rng.below(5)));
          break;
        default:
          text.insert(at, text.substr(size_t(rng.below(int64_t(text.size()))), 20));
      }
    }
    try {
      resolved(read(text));
      ++accepted;
    } catch (const Error& e) {
      ++refused;
      EXPECT_EQ(int(e.kind()), int(ErrorKind::usage)) << e.what();
    }
  }
  EXPECT_GT(accepted, 200);
  EXPECT_GT(refused, 200);
}

TEST(Config, ChangesNameEveryDifference) {
  ConfigNode a = describe_config(read("{stage: {steps: 1}, model: {replace: [{blocks: 1}]}}"));
  ConfigNode b = describe_config(read("{stage: {steps: 2}}"));
  std::vector<std::string> changes = config_changes(a, b);
  ASSERT_EQ(changes.size(), 2u);
  EXPECT_NE(changes[0].find("model.replace: "), std::string::npos) << changes[0];
  EXPECT_EQ(changes[1], "stage.steps: 1 -> 2");
  EXPECT_TRUE(config_changes(a, a).empty());
}

TEST(NearestName, IsASlipOrNothing) {
  std::vector<std::string> names{"epochs", "batch", "lr"};
  EXPECT_EQ(nearest_name("epoch", names), "epochs");
  EXPECT_EQ(nearest_name("bacth", names), "batch");
  EXPECT_EQ(nearest_name("rl", names), "lr");
  EXPECT_EQ(nearest_name("device", names), "");
  EXPECT_EQ(name_hint("x", {}), "nothing is known here");
}

}  // namespace
}  // namespace occam
