// inspect prints what a model costs; its ledger is the published one (arXiv 2605.18865's modules on DeiT).
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/io/json.h"
#include "tests/apps/apps_under_test.h"

namespace occam {
namespace {

class Inspect : public AppFixture {
 protected:
  Json inspect(const Words& arguments) {
    ProcessResult result = run("inspect", arguments + Words{"--json"});
    expect_success(result);
    return parse_json(result.out, "inspect");
  }
  static Json row(const Json& summary, const std::string& mixer) {
    for (const Json& r : summary.at("ledger"))
      if (r.at("mixer") == mixer) return r;
    ADD_FAILURE() << "no ledger of " << mixer;
    return {};
  }
};

TEST_F(Inspect, LedgerOfAttentionAndBiLstm) {
  struct Case {
    const char* model;
    int64_t attention, bilstm;       // parameters of one block
    double attention_g, bilstm_g;    // G multiply-adds of one block at 197 tokens
    double model_m, model_bilstm_m;  // M parameters
  };
  for (const Case& c : {Case{"deit_tiny_patch16_224", 148224, 298560, 0.044, 0.058, 5.72, 7.52},
                        Case{"deit_small_patch16_224", 591360, 744576, 0.146, 0.145, 22.05, 23.89},
                        Case{"deit_base_patch16_224", 2362368, 2078976, 0.524, 0.407, 86.57, 83.17}}) {
    SCOPED_TRACE(c.model);
    const Json s = inspect({std::string("model.name=") + c.model});
    auto giga = [&](const char* mixer) {
      return std::round(row(s, mixer)["macs"].get<double>() / 1e6) / 1e3;
    };
    auto millions = [&](const char* mixer) {
      return std::round(row(s, mixer)["model_params"].get<double>() / 1e4) / 1e2;
    };
    EXPECT_EQ(s["tokens"], 197);
    EXPECT_EQ(row(s, "attention")["params"], c.attention);
    EXPECT_EQ(row(s, "bilstm")["params"], c.bilstm);
    EXPECT_DOUBLE_EQ(giga("attention"), c.attention_g);
    EXPECT_DOUBLE_EQ(giga("bilstm"), c.bilstm_g);
    EXPECT_DOUBLE_EQ(millions("attention"), c.model_m);
    EXPECT_DOUBLE_EQ(millions("bilstm"), c.model_bilstm_m);
    EXPECT_EQ(row(s, "attention")["model_macs"], s["macs"]);
    EXPECT_EQ(row(s, "bilstm")["sequential_depth"], 197);
  }
}

TEST_F(Inspect, SumsOfPartsAreTheTotals) {
  const Json s = inspect(tiny_model() + Words{"model.classes=3", "model.replace={blocks: 1, with: bilstm}"});
  int64_t elements = 0, blocks = 0;
  for (const Json& p : s["parameters"]) {
    int64_t product = 1;
    for (int64_t size : p["shape"]) product *= size;
    EXPECT_EQ(p["elements"], product);
    elements += product;
  }
  EXPECT_EQ(s["params"], elements);
  EXPECT_EQ(s["modules"][0]["params"], elements);
  for (const Json& m : s["modules"])
    if (m["kind"] == "Block") blocks += m["macs"].get<int64_t>();
  int64_t others = 0;
  for (const Json& m : s["modules"])
    if (m["path"] == "patch_embed" || m["path"] == "head") others += m["macs"].get<int64_t>();
  EXPECT_EQ(s["macs"], blocks + others);
  EXPECT_EQ(s["blocks"][0]["with"], "attention");
  EXPECT_EQ(s["blocks"][1]["with"], "bilstm");
  EXPECT_EQ(s["blocks"][1]["params"], row(s, "bilstm")["params"]);
}

TEST_F(Inspect, PrintsTheTreeAndWritesOnlyWhereItIsAskedTo) {
  ProcessResult result = run("inspect", tiny_model() + Words{"parameters=true"});
  expect_success(result);
  for (const char* part : {"blocks.1 Block", "attn Attention", "blocks.0.attn.qkv.weight", "bilstm"})
    EXPECT_NE(result.out.find(part), std::string::npos) << part << " in " << result.out;
  EXPECT_TRUE(snapshot(folder_.path()).empty());
  expect_success(run("inspect", tiny_model() + Words{"out.dir=x"}));
  auto files = snapshot(folder_ / "x");
  for (const char* name : {"summary.json", "report.html", "config.resolved.yaml", "env.json"})
    EXPECT_TRUE(files.contains(name)) << name;
}

TEST_F(Inspect, OpensAFileByItsNameAlone) {
  write_bytes(folder_ / "model.safetensors", checkpoint_bytes());
  const Json s = inspect({"model.checkpoint=model.safetensors"});
  EXPECT_EQ(s["blocks"].size(), 2u);
  EXPECT_EQ(s["image"], Json::array({1, 3, 8, 8}));
  write_bytes(folder_ / "cut.safetensors", checkpoint_bytes().substr(0, 3000));
  expect_failure("inspect", run("inspect", {"model.checkpoint=cut.safetensors"}), 2,
                 {"cut.safetensors", "truncated"});
}

}  // namespace
}  // namespace occam
