// What a model is made of, without running it. The work is nn/plan and the mixers' ledgers.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "apps/common/app.h"
#include "apps/inspect/convert.h"
#include "apps/inspect/ledger.h"
#include "core/report/html.h"
#include "nn/plan.h"
#include "nn/summary.h"
#include "nn/vit/model.h"

namespace occam {
namespace {

struct Config : CommonConfig {
  ModelConfig model;
  LedgerConfig ledger;
  ConvertConfig convert;
  int64_t depth = 2;
  bool parameters = false;

  template <class V>
  void visit(V& v) {
    CommonConfig::visit(v);
    v("model", model, "what is inspected: a name, a file, or sizes");
    v("ledger", ledger, "for `ledger`: which mixers at which lengths");
    v("convert", convert, "for `convert`: a student of the original implementation");
    v("depth", depth, "levels of the tree that are printed, below the model itself", Range{0, 16});
    v("parameters", parameters, "print every parameter's name and shape too");
  }
};

Json shape_json(const Shape& shape) {
  Json sizes = Json::array();
  for (int axis = 0; axis < shape.rank(); ++axis) sizes.push_back(shape[axis]);
  return sizes;
}

/// What stands in each block.
Table blocks_table(const VisionTransformer& model, const Plan& plan) {
  Table table{.columns = {"block", "mixer", "parameters", "multiply-adds"}};
  for (int64_t i = 0; i < model.shape().depth; ++i) {
    const Plan::Row& row = plan.at(fmt::format("blocks.{}.attn", i));
    table.add({i, model.mixer_choice(i).with, row.params, row.macs});
  }
  return table;
}

Table parameters_table(const VisionTransformer& model) {
  Table table{.columns = {"parameter", "shape", "elements"}};
  for (const auto& [name, p] : model.named_parameters()) table.add({name, p->shape().str(), p->numel()});
  return table;
}

Json summary_json(const VisionTransformer& model, const Plan& plan) {
  const VitShape& shape = model.shape();
  Json modules = Json::array(), parameters = Json::array(), blocks = Json::array();
  for (const Plan::Row& row : plan.rows())
    modules.push_back({{"path", row.path},
                       {"kind", row.kind},
                       {"input", shape_json(row.input)},
                       {"output", shape_json(row.output)},
                       {"params", row.params},
                       {"macs", row.macs}});
  for (const auto& [name, p] : model.named_parameters())
    parameters.push_back({{"name", name}, {"shape", shape_json(p->shape())}, {"elements", p->numel()}});
  for (int64_t i = 0; i < shape.depth; ++i) {
    const Plan::Row& row = plan.at(fmt::format("blocks.{}.attn", i));
    blocks.push_back({{"with", model.mixer_choice(i).with},
                      {"options", model.mixer_choice(i).options},
                      {"params", row.params},
                      {"macs", row.macs}});
  }
  return {{"model", model.model_name()},
          {"image", shape_json(shape.image())},
          {"tokens", shape.tokens()},
          {"params", plan.total().params},
          {"macs", plan.total().macs},
          {"blocks", blocks},
          {"ledger", ledger_json(ledger_of(shape))},
          {"modules", modules},
          {"parameters", parameters}};
}

void write_report(const VisionTransformer& model, const Plan& plan, const std::filesystem::path& path) {
  HtmlReport report("The model " + model.model_name(), "one image of " + model.shape().image().str());
  report.highlights({{fmt::format("{:.2f} M", double(plan.total().params) / 1e6), "parameters"},
                     {fmt::format("{:.1f} M", double(plan.total().macs) / 1e6), "multiply-adds an image"},
                     {std::to_string(model.shape().tokens()), "tokens"}});
  report.section("Blocks");
  report.table(blocks_table(model, plan));
  report.section("Ledger of mixers");
  report.paragraph("One block's mixer at this model's sizes, and the model with that mixer in every block.");
  report.table(ledger_table(ledger_of(model.shape())));
  report.section("Modules");
  report.code(summary(plan));
  report.section("Parameters");
  report.table(parameters_table(model));
  report.write(path);
}

void print_ledger(App& app, const Config& config) {
  const std::unique_ptr<VisionTransformer> model = make_model(config.model);
  const std::vector<LedgerRow> rows = ledger_of(model->shape(), config.ledger);
  app.checked();
  const std::string title = fmt::format("{}: one block's mixer at {} channels and {} heads",
                                        model->model_name(), model->shape().dim, model->shape().heads);
  if (!config.out.dir.empty()) {
    HtmlReport report("Ledger of mixers", title);
    report.table(ledger_table(rows));
    if (!refusals(rows).empty()) report.list(refusals(rows));
    report.write(app.start_run(config).path() / "report.html");
  }
  std::string text = title + "\n\n" + to_text(ledger_table(rows));
  for (const std::string& line : refusals(rows)) text += line + "\n";
  app.print(text);
  app.finish({{"model", model->model_name()}, {"ledger", ledger_json(rows)}});
}

void inspect(App& app, Config& config) {
  if (app.verb() == "ledger") return print_ledger(app, config);
  if (app.verb() == "convert") return convert_wide_lstm(app, config.model, config.convert, config.out);
  const std::unique_ptr<VisionTransformer> model = make_model(config.model);
  const Plan plan = plan_of(*model, model->shape().image());
  app.checked();
  if (!config.out.dir.empty()) write_report(*model, plan, app.start_run(config).path() / "report.html");
  app.print(fmt::format("{}, one image of {}, {} tokens\n\n{}\n", model->model_name(),
                        model->shape().image().str(), model->shape().tokens(),
                        summary(plan, int(config.depth))));
  if (config.parameters) app.print(to_text(parameters_table(*model)) + "\n");
  app.print("One block's mixer, and the model with it in every block:\n" +
            to_text(ledger_table(ledger_of(model->shape()))));
  app.finish(summary_json(*model, plan));
}

}  // namespace
}  // namespace occam

int main(int argc, char** argv) {
  using namespace occam;
  AppInfo info;
  info.name = "inspect";
  info.summary =
      "A model's tree: shapes, exact parameter counts and multiply-adds of every module, and what each mixer "
      "would cost in its blocks. Nothing is run.";
  info.examples = {"inspect model.name=deit_tiny_patch16_224",
                   "inspect model.checkpoint=runs/d/students/bilstm-1-2.safetensors parameters=true",
                   "inspect model.name=vit_base_patch16_224 model.image_size=384 --json",
                   "inspect ledger model.name=deit_base_patch16_224 ledger.tokens=[197,577,1025]"};
  info.verbs = {"model", "ledger", "convert"};
  info.run_folder = false;
  return run_app<Config>(argc, argv, info, inspect);
}
