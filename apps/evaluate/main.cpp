// Accuracy of a model on a data set. The work is nn/train/evaluate.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "apps/common/model.h"
#include "apps/common/progress.h"
#include "core/check.h"
#include "core/io/atomic_file.h"
#include "core/io/safetensors.h"
#include "core/report/html.h"
#include "core/report/svg.h"
#include "nn/train/evaluate.h"

namespace occam {
namespace {

struct Config : CommonConfig {
  ModelConfig model;
  DataConfig data;
  int64_t batch = 64;
  uint64_t seed = 0;
  struct Outputs {
    std::string logits;
    template <class V>
    void visit(V& v) {
      v("logits", logits,
        "safetensors file for f32 logits [images, classes] and i64 labels, in data-set order");
    }
  } outputs;

  template <class V>
  void visit(V& v) {
    CommonConfig::visit(v);
    v("model", model, "what is evaluated");
    v("data", data, "on what");
    v("batch", batch, "images at a time", Range{1, 1 << 20});
    v("seed", seed, "of the weights when there is no checkpoint", Range::at_least(0));
    v("outputs", outputs, "what else to store");
  }
};

void evaluate_app(App& app, Config& config) {
  DatasetPtr data = make_dataset(resolve(config.data));
  std::unique_ptr<VisionTransformer> model =
      open_model(app, config.model, config.data, config.precision, config.seed, data->classes());
  if (std::string warning = check_head(*data, model->shape().classes); !warning.empty()) warn(warning);
  // Whether the file can be written there shows now, not after the work.
  if (!config.outputs.logits.empty()) AtomicFile probe(config.outputs.logits);
  RunFolder& run = app.start_run(config);
  LoaderOptions options;
  options.batch = config.batch;
  options.device = app.device();
  std::unique_ptr<Loader> loader = make_loader(config.data, data, options, false);
  Progress progress("evaluate", data->size(), "images");
  Evaluation e = evaluate(*model, *loader,
                          {.keep_logits = !config.outputs.logits.empty(),
                           .progress = [&](int64_t images) { progress.update(images); },
                           .stop = [] { return stop_requested(); }});
  progress.finish();
  if (stop_requested()) return;
  std::set<std::string> skipped;
  add_skipped(*loader, skipped);
  warn_skipped(skipped);
  if (!config.outputs.logits.empty())
    write_safetensors(config.outputs.logits, {{"logits", e.logits}, {"labels", e.labels}});

  Table classes{.columns = {"class", "images", "right", "accuracy"}};
  Json by_class = Json::array();
  for (size_t k = 0; k < e.class_images.size(); ++k) {
    if (e.class_images[k] == 0) continue;
    double accuracy = double(e.class_correct[k]) / double(e.class_images[k]);
    std::string name = k < data->class_names().size() ? data->class_names()[k] : std::to_string(k);
    classes.add({name, e.class_images[k], e.class_correct[k], Cell::percent(accuracy)});
    by_class.push_back({{"class", name}, {"images", e.class_images[k]}, {"accuracy", accuracy}});
  }
  HtmlReport report("Evaluation of " + model->model_name(), run.dir().string());
  report.highlights({{fmt::format("{:.2f} %", 100 * e.top1), "top-1"},
                     {fmt::format("{:.2f} %", 100 * e.top5), "top-5"},
                     {fmt::format("{:.4f}", e.loss), "loss"}});
  report.section("By class");
  report.table(classes);
  report.write(run.path() / "report.html");
  app.finish({{"images", e.images},
              {"top1", e.top1},
              {"top5", e.top5},
              {"loss", e.loss},
              {"classes", by_class},
              {"images_per_s", e.images_per_s},
              {"skipped_images", skipped.size()}});
  std::fprintf(stderr, "top-1 %.2f %%, top-5 %.2f %%, loss %.4f on %lld images; %s\n", 100 * e.top1,
               100 * e.top5, e.loss, static_cast<long long>(e.images), run.dir().c_str());
}

}  // namespace
}  // namespace occam

int main(int argc, char** argv) {
  using namespace occam;
  AppInfo info;
  info.name = "evaluate";
  info.summary = "Top-1, top-5, loss and per-class accuracy of a model on a data set.";
  info.examples = {"evaluate model.checkpoint=runs/a/best.safetensors data.name=fashion_mnist",
                   "evaluate model.name=deit_tiny_patch16_224 model.checkpoint=deit_tiny.safetensors "
                   "data.name=folder data.root=imagenet data.split=val outputs.logits=logits.safetensors"};
  return run_app<Config>(argc, argv, info, evaluate_app);
}
