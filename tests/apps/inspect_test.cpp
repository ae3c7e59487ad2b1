// inspect prints what a model costs; its ledger is the published one (arXiv 2605.18865's modules on DeiT).
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/io/json.h"
#include "nn/state.h"
#include "nn/vit/model.h"
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

// method.md 1.4 of the project's notes: G multiply-adds a block at several lengths.
TEST_F(Inspect, LedgerAtOtherLengths) {
  struct Case {
    const char *model, *tokens;
    std::vector<double> attention, bilstm, mamba2;
  };
  for (const Case& c :
       {Case{"deit_tiny_patch16_224", "[197,768]", {0.044, 0.340}, {0.058, 0.226}, {0.081, 0.315}},
        Case{"deit_base_patch16_224",
             "[197,577,1025]",
             {0.524, 1.873, 4.032},
             {0.407, 1.191, 2.116},
             {0.761, 2.227, 3.957}}}) {
    const ProcessResult result = run("inspect", {"ledger", std::string("model.name=") + c.model,
                                                 "model.depth=1", std::string("ledger.tokens=") + c.tokens,
                                                 "ledger.mixers=[attention,bilstm,mamba2]", "--json"});
    expect_success(result);
    const Json rows = parse_json(result.out, "inspect").at("ledger");
    ASSERT_EQ(rows.size(), 3 * c.attention.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      const Json& row = rows[i];
      const char* name = std::array{"attention", "bilstm", "mamba2"}[i % 3];
      const double figure = std::array{c.attention, c.bilstm, c.mamba2}[i % 3][i / 3];
      EXPECT_EQ(row["mixer"], name);
      EXPECT_DOUBLE_EQ(std::round(row["macs"].get<double>() / 1e6) / 1e3, figure) << name;
    }
  }
}

TEST_F(Inspect, LedgerWithSizedMixers) {
  const ProcessResult result =
      run("inspect", {"ledger", "model.name=deit_tiny_patch16_224", "ledger.match=params",
                      "ledger.mixers=[bilstm,pool,mamba2]", "--json"});
  expect_success(result);
  const Json rows = parse_json(result.out, "inspect").at("ledger");
  EXPECT_EQ(rows[0]["options"]["hidden"], "24");
  EXPECT_EQ(rows[0]["params"], 135360);
  EXPECT_EQ(rows[1]["options"], Json::object());
  EXPECT_NE(rows[2]["refusal"].get<std::string>().find("attention has 148224"), std::string::npos) << rows[2];
}

// 577 tokens are the model at 384 pixels: a mixer over the grid then has another grid.
TEST_F(Inspect, LedgerAtALengthIsThatOfTheModelOfThisLength) {
  const Words small{"ledger", "model.name=deit_small_patch16_224", "model.depth=1", "--json"};
  auto ledger = [&](const Words& more) {
    const ProcessResult result = run("inspect", small + more);
    expect_success(result);
    return parse_json(result.out, "inspect").at("ledger");
  };
  const Json other = ledger({"ledger.tokens=577"}), own = ledger({"model.image_size=384"});
  ASSERT_EQ(other.size(), own.size());
  for (size_t i = 0; i < own.size(); ++i)
    for (const char* key : {"tokens", "mixer", "params", "macs", "sequential_depth"})
      EXPECT_EQ(other[i].at(key), own[i].at(key)) << own[i]["mixer"] << " " << key;
  for (const Json& row : ledger({"ledger.tokens=[1, 768]", "ledger.mixers=[bilstm2d, dwconv, token_mlp]"}))
    EXPECT_NE(
        row.at("refusal").get<std::string>().find(row["mixer"].get<std::string>() + " needs a patch grid"),
        std::string::npos)
        << row;
}

TEST_F(Inspect, LedgerRefusesWhatItCannotMean) {
  const Words tiny{"ledger", "model.name=deit_tiny_patch16_224"};
  expect_failure("inspect", run("inspect", tiny + Words{"ledger.tokens=9000000000000000000"}), 2,
                 {"ledger.tokens", "16777216"});
  for (const char* match : {"none", "params"})
    expect_failure(
        "inspect",
        run("inspect", tiny + Words{"ledger.tokens=[197, 577]", "ledger.options={hiddn: 8}",
                                    std::string("ledger.match=") + match, "ledger.mixers=[bilstm]"}),
        2, {"hiddn", "bilstm", "hidden"});
  expect_failure(
      "inspect",
      run("inspect", tiny + Words{"ledger.tokens=577", "ledger.options={foo: 1}", "ledger.mixers=pool"}), 2,
      {"foo", "pool"});
  expect_success(run("inspect", tiny + Words{"ledger.match=macs", "ledger.tokens=[1, 16777216]"}));
}

TEST_F(Inspect, LedgerWritesWhereItIsAskedTo) {
  expect_success(run("inspect", {"ledger", "model.name=deit_tiny_patch16_224", "ledger.match=params",
                                 "ledger.mixers=[bilstm, mamba2]", "out.dir=x"}));
  auto files = snapshot(folder_ / "x");
  for (const char* name : {"summary.json", "report.html", "config.resolved.yaml", "env.json"})
    EXPECT_TRUE(files.contains(name)) << name;
  EXPECT_EQ(parse_json(files["summary.json"], "inspect").at("ledger")[0]["options"]["hidden"], "24");
  for (const char* part : {"bilstm hidden=24", "attention has 148224"})
    EXPECT_NE(files["report.html"].find(part), std::string::npos) << part;
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

// The original's file of a student, made from one of ours, comes back as ours.
TEST_F(Inspect, ConvertsWideLstms) {
  ModelConfig config{.name = "vit"};
  config.image_size = 16, config.patch = 8, config.dim = 8, config.depth = 2, config.heads = 2,
  config.classes = 3;
  config.replace = {{.blocks = {1}}};
  auto model = make_model(config, 3);
  NamedTensors wide;
  for (const auto& [name, tensor] : state_dict(*model)) {
    const size_t at = name.find("attn.rnn."), end = at + 9;
    if (at == std::string::npos) {
      const bool weight = name.ends_with("head_proj.weight");
      Tensor t = tensor;
      if (weight) {  // [2, 4, 8]
        t = zeros({8, 16});
        for (int64_t r = 0; r < 8; ++r)
          for (int64_t c = 0; c < 8; ++c)
            t.data<float>()[r * 16 + r / 4 * 8 + c] = tensor.data<float>()[r * 8 + c];
      }
      wide.emplace_back(name, name.ends_with("head_proj.bias") ? raw::reshape(t, {8}) : t);
      continue;
    }
    for (int64_t direction : {0, 1}) {  // [2, 2, 16, 4] or [2, 2, 16]
      const bool matrix = tensor.rank() == 4;
      Tensor t = zeros(matrix ? Shape{32, 8} : Shape{32});
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t row = 0; row < 16; ++row)
          for (int64_t c = 0; c < (matrix ? 4 : 1); ++c) {
            const int64_t wide_row = row / 4 * 8 + h * 4 + row % 4;
            t.data<float>()[matrix ? wide_row * 8 + h * 4 + c : wide_row] =
                tensor.data<float>()[((direction * 2 + h) * 16 + row) * (matrix ? 4 : 1) + c];
          }
      wide.emplace_back(
          name.substr(0, at) + "attn.lstm." + name.substr(end) + (direction ? "_l0_reverse" : "_l0"), t);
    }
  }
  write_safetensors((folder_ / "wide.safetensors").string(), wide);
  const Words convert{"convert",
                      "model={name: vit, image_size: 16, patch: 8, dim: 8, depth: 2, heads: 2, "
                      "classes: 3, replace: {blocks: 1, with: bilstm}}",
                      "convert.rename={lstm: rnn}"};
  const Words student = convert + Words{"convert.file=wide.safetensors", "convert.to=ours.safetensors"};
  expect_success(run("inspect", student));
  const auto before = snapshot(folder_.path());
  auto refuse = [&](const Words& settings, const Words& parts) {
    expect_failure("inspect", run("inspect", with(student, settings)), 2, parts);
    EXPECT_TRUE(snapshot(folder_.path()) == before) << parts[0];  // not printed: files are bytes
  };
  refuse({}, {"ours.safetensors", "out.overwrite=true"});
  refuse({"convert.to=./wide.safetensors", "out.overwrite=true"}, {"convert.to", "convert.file"});
  refuse({"convert.to=new/ours.safetensors"}, {"new", "no such folder"});
  refuse({"convert.to=" + folder_.path().string(), "out.overwrite=true"}, {"is a folder"});
  refuse({"convert.file=ours.safetensors", "convert.to=copy.safetensors"}, {"ours.safetensors", "no LSTM"});
  refuse({"convert.to=copy.safetensors", "out.dir=x"}, {"out.dir"});
  expect_success(run("inspect", student + Words{"out.overwrite=true"}));
  ModelConfig of_file;
  of_file.checkpoint = (folder_ / "ours.safetensors").string();
  auto back = make_model(of_file);
  const NamedTensors ours = state_dict(*model), read = state_dict(*back);
  ASSERT_EQ(ours.size(), read.size());
  for (size_t i = 0; i < ours.size(); ++i) {
    EXPECT_EQ(ours[i].first, read[i].first);
    EXPECT_EQ(ours[i].second.to_vector<float>(), read[i].second.to_vector<float>()) << ours[i].first;
  }
}

}  // namespace
}  // namespace occam
