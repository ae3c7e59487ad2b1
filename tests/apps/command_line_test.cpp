#include "apps/common/command_line.h"

#include <gtest/gtest.h>

#include "core/config_visit.h"
#include "tests/apps/example_config.h"
#include "tests/core/expect_error.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace {

const AppInfo kInfo{.name = "train",
                    .summary = "Trains.",
                    .examples = {"train config.yaml stage.steps=3"},
                    .verbs = {"fit", "tune"},
                    .resumes = true};

Arguments parse(const std::vector<std::string>& arguments) { return parse_arguments(arguments, kInfo); }

ExampleConfig load(const std::vector<std::string>& arguments) {
  ExampleConfig config;
  read_config(load_config(parse(arguments)), config);
  return config;
}

void refused(const std::vector<std::string>& arguments, const std::string& message) {
  EXPECT_OCCAM_ERROR(load(arguments), ErrorKind::usage, message);
}

TEST(CommandLine, TakesEveryPart) {
  Arguments a = parse({"tune", "c.yaml", "stage.lr=1e-3", "--device", "cuda:1", "--resume=auto", "--json",
                       "--check", "--print-config", "keys=[entropy]"});
  EXPECT_EQ(a.verb, "tune");
  EXPECT_EQ(a.config, "c.yaml");
  EXPECT_EQ(a.settings.size(), 2u);
  EXPECT_EQ(a.device, "cuda:1");
  EXPECT_EQ(a.resume, "auto");
  EXPECT_TRUE(a.json && a.check && a.print_config && !a.help);
  EXPECT_EQ(parse({}).verb, "fit");
  EXPECT_EQ(parse({"--help", "stage.lr"}).help_key, "stage.lr");
  EXPECT_EQ(parse({"--help", "--json"}).help_key, "");
  EXPECT_TRUE(parse({"-h"}).help);
}

TEST(CommandLine, SettingsGoOverTheFile) {
  TempFolder folder;
  write_bytes(folder / "c.yaml",
              "stage: {steps: 3, lr: 0.5}\nkeys: [gini]\nmodel: {replace: [{blocks: 1}, {blocks: 2}]}\n");
  std::string file = (folder / "c.yaml").string();
  ExampleConfig c = load({file, "stage.steps=4", "keys=[hoyer, entropy]", "model.checkpoint=x=y.safetensors",
                          "model.replace.1.with=identity", "shuffle=false"});
  EXPECT_EQ(c.stage.steps, 4);
  EXPECT_EQ(c.stage.lr, 0.5);
  EXPECT_EQ(c.keys, (std::vector<std::string>{"hoyer", "entropy"}));
  EXPECT_EQ(c.model.checkpoint, "x=y.safetensors");
  EXPECT_EQ(c.model.replace[1].with, "identity");
  EXPECT_FALSE(c.shuffle);
  // A mapping on the command line takes the place of the file's.
  EXPECT_EQ(load({file, "stage={steps: 9}"}).stage.lr, 1e-3);
}

TEST(CommandLine, ErrorsNameTheArgument) {
  refused({"stage.steps=x"}, "stage.steps=x: stage.steps: expected a whole number at least 1, found 'x'");
  refused({"stage.stesp=1"}, "stage.stesp=1: stage.stesp: unknown key; did you mean 'steps'?");
  refused({"keys=[a"}, "not valid YAML");
  refused({"model.replace.0.with=x"}, "model.replace.0: unknown key");
  refused({"seed=1", "seed=2"}, "'seed' is set twice on the command line ('seed=1' and 'seed=2')");
  refused({"stage={lr: 1}", "stage.steps=2"}, "'stage' is set twice");
  refused({"stage.steps=2", "stage={lr: 1}"}, "'stage' is set twice");
  refused({"=3"}, "does not name a key");
  refused({"a..b=3"}, "does not name a key");
  refused({"--devise", "cpu"}, "unknown option --devise; did you mean '--device'?");
  refused({"--device"}, "--device needs a value");
  refused({"--device", "--json"}, "--device needs a value");
  refused({"--json", "--json"}, "--json is given twice");
  refused({"--json=1"}, "--json takes no value");
  refused({"--resume="}, "needs 'auto' or the path");
  refused({"tun"}, "'tun' is no verb (did you mean 'tune'?)");
  refused({"a.yaml", "b.yaml"}, "two config files");
  refused({"absent.yaml"}, "absent.yaml");
}

TEST(CommandLine, AnAppWithoutResumeDoesNotKnowTheOption) {
  EXPECT_OCCAM_ERROR(parse_arguments({"--resume", "auto"}, {.name = "inspect"}), ErrorKind::usage,
                     "unknown option --resume");
}

TEST(CommandLine, BelowAValueNothingCanBeSet) {
  TempFolder folder;
  write_bytes(folder / "c.yaml", "model: vit\nkeys: [gini]\n");
  std::string file = (folder / "c.yaml").string();
  refused({file, "model.checkpoint=x"}, "'model' is 'vit' (" + file + ":1:8)");
  refused({file, "keys.3=x"}, "has no item '3', only 0 to 0");
}

TEST(CommandLine, Help) {
  std::string text = help_text(kInfo, describe_config(ExampleConfig{}));
  for (std::string part : {"Usage: train [VERB]", "--resume", "train config.yaml stage.steps=3", "lr: 0.001",
                           "learning rate (number above 0)", "one of bilstm, identity, attention"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  ConfigNode described = describe_config(ExampleConfig{});
  EXPECT_EQ(help_text_of(kInfo, described, "stage.lr"),
            "stage.lr: learning rate (number above 0)\ndefault: 0.001\n");
  EXPECT_EQ(help_text_of(kInfo, described, "keys"),
            "keys: measures (list of one of entropy, gini, hoyer)\ndefault: [entropy, gini]\n");
  EXPECT_NE(help_text_of(kInfo, described, "model.replace.with").find("default: bilstm"), std::string::npos);
  EXPECT_NE(help_text_of(kInfo, described, "stage").find("steps: 10"), std::string::npos);
  EXPECT_OCCAM_ERROR(help_text_of(kInfo, described, "stage.l"), ErrorKind::usage, "did you mean 'stage.lr'?");
}

}  // namespace
}  // namespace occam
