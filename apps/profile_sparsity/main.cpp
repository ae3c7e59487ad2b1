// How sparse is the attention of each layer? The work is in nn/profile; here are settings, files and the
// report.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "apps/common/model.h"
#include "apps/common/progress.h"
#include "core/check.h"
#include "core/io/atomic_file.h"
#include "core/io/safetensors.h"
#include "core/report/color.h"
#include "core/report/html.h"
#include "core/report/png.h"
#include "core/report/svg.h"
#include "nn/profile/run.h"

namespace occam {
namespace {

struct Config : CommonConfig {
  ModelConfig model;
  DataConfig data;
  int64_t batch = 32;
  uint64_t seed = 0;
  std::string rank_by = "entropy";
  bool order_metrics = true, maps = false;
  int64_t gallery = 4;

  template <class V>
  void visit(V& v) {
    CommonConfig::visit(v);
    v("model", model, "what is profiled");
    v("data", data, "the images; data.limit is how many");
    v("batch", batch, "images at a time", Range{1, 1 << 16});
    v("seed", seed, "of the weights when there is no checkpoint", Range::at_least(0));
    v("rank_by", rank_by, "metric of the ranking shown first", Choices(sparsity_keys()));
    v("order_metrics", order_metrics, "also Gini, top-k mass and p-mass support, which sort every row");
    v("maps", maps, "also every head's mean map and data dependence");
    v("gallery", gallery, "images in the report with their CLS attention by layer", Range{0, 64});
  }
};

size_t index_of(const std::string& key) {
  std::vector<std::string> keys = sparsity_keys();
  return size_t(std::find(keys.begin(), keys.end(), key) - keys.begin());
}

std::vector<std::string> numbers(int64_t count) {
  std::vector<std::string> labels;
  for (int64_t i = 0; i < count; ++i) labels.push_back(std::to_string(i));
  return labels;
}

std::string head_heat_map(const SparsityProfile& p, size_t key) {
  HeatMap map;
  map.title = sparsity_keys()[key] + " by layer and head";
  map.description = "Mean over images and patch rows; one row a layer, one column a head.";
  map.row_axis = "layer", map.column_axis = "head";
  int64_t heads = 0;
  for (int64_t i = 0; i < p.layers(); ++i) heads = std::max(heads, p.heads(i));
  map.rows = numbers(p.layers()), map.columns = numbers(heads);
  for (int64_t i = 0; i < p.layers(); ++i)
    for (int64_t h = 0; h < heads; ++h)
      map.values.push_back(h < p.heads(i) ? p.head_mean(i, h, RowSet::patch, key) : NAN);
  return heat_map(map);
}

std::string layer_curve(const SparsityProfile& p, size_t key) {
  ChartOptions options{.title = sparsity_keys()[key] + " by layer",
                       .description =
                           "Mean over heads and images of patch rows and of the CLS row; the band is one "
                           "standard deviation over images of all rows."};
  options.x.label = "layer", options.y.label = sparsity_keys()[key];
  Series all{.name = "all rows"}, cls{.name = "CLS row"}, patch{.name = "patch rows"};
  for (int64_t i = 0; i < p.layers(); ++i) {
    double mean = p.mean(i, RowSet::all, key), spread = p.std(i, key);
    if (std::isnan(spread)) spread = 0;
    all.x.push_back(double(i)), all.y.push_back(mean), all.low.push_back(mean - spread),
        all.high.push_back(mean + spread);
    cls.x.push_back(double(i)), cls.y.push_back(p.mean(i, RowSet::cls, key));
    patch.x.push_back(double(i)), patch.y.push_back(p.mean(i, RowSet::patch, key));
  }
  return line_chart(options, {all, patch, cls});
}

std::string agreement_map(const SparsityProfile& p) {
  HeatMap map;
  map.title = "Agreement of the metrics";
  map.description =
      "Kendall's tau-b between the rankings of layers by two metrics: 1 is the same order, -1 the reverse.";
  map.rows = map.columns = sparsity_keys();
  map.min = -1, map.max = 1;
  for (size_t a = 0; a < map.rows.size(); ++a)
    for (size_t b = 0; b < map.rows.size(); ++b) map.values.push_back(p.agreement(a, b));
  return heat_map(map);
}

Table ranking_table(const SparsityProfile& p, size_t key) {
  Table table{.columns = {"rank", "layer", sparsity_keys()[key], "std over images", "top_k_mass_5",
                          "attention_distance"}};
  int64_t rank = 1;
  for (int64_t layer : p.ranking(key))
    table.add({rank++, layer, Cell(p.mean(layer, RowSet::patch, key), 4), Cell(p.std(layer, key), 4),
               Cell(p.mean(layer, RowSet::patch, index_of("top_k_mass_5")), 4),
               Cell(p.mean(layer, RowSet::patch, index_of("attention_distance")), 2)});
  return table;
}

/// The picture as decoded, as RGB.
std::vector<uint8_t> rgb_of(const Image& image) {
  std::vector<uint8_t> rgb;
  const uint8_t* p = image.data();
  for (int64_t i = 0; i < image.height() * image.width(); ++i)
    for (int64_t c = 0; c < 3; ++c) rgb.push_back(p[i * image.channels() + (image.channels() == 3 ? c : 0)]);
  return rgb;
}

void add_gallery(HtmlReport& report, const ProfileResult& result, const Dataset& data,
                 const VitShape& shape) {
  if (result.gallery.empty()) return;
  report.section("Where the CLS token looks");
  report.paragraph(
      "Attention of the CLS token to the patches, mean over the heads, over the picture stretched to the "
      "network's "
      "square input; each panel is scaled to its own range.");
  int64_t grid = shape.image_size / shape.patch;
  for (const GalleryImage& g : result.gallery) {
    Sample sample = data.get(g.index);
    std::vector<uint8_t> rgb = rgb_of(sample.image);
    int64_t h = sample.image.height(), w = sample.image.width(), side = 96;
    // Shown at a fixed size; nearest pixels are enough for a thumbnail.
    std::vector<uint8_t> small(size_t(side * side * 3));
    for (int64_t y = 0; y < side; ++y)
      for (int64_t x = 0; x < side; ++x)
        for (int64_t c = 0; c < 3; ++c)
          small[size_t((y * side + x) * 3 + c)] = rgb[size_t((y * h / side * w + x * w / side) * 3 + c)];
    std::string name = data.class_names().at(size_t(sample.label));
    std::vector<ReportImage> row{
        {encode_png(small, side, side, 3), side, side, "the image, class " + name, name}};
    for (size_t i = 0; i < g.layers.size(); ++i) {
      if (g.layers[i].empty()) continue;
      std::vector<uint8_t> heat = heat_overlay(small, side, side, g.layers[i], grid, grid, 0.65);
      row.push_back({encode_png(heat, side, side, 3), side, side,
                     "CLS attention of layer " + std::to_string(i), "layer " + std::to_string(i)});
    }
    report.images(row, "Image " + std::to_string(g.index));
  }
}

void profile_app(App& app, Config& config) {
  DatasetPtr data = make_dataset(resolve(config.data));
  std::unique_ptr<VisionTransformer> model =
      open_model(app, config.model, config.data, config.precision, config.seed, data->classes());
  RunFolder& run = app.start_run(config);
  LoaderOptions loader_options;
  loader_options.batch = config.batch;
  loader_options.device = app.device();
  std::unique_ptr<Loader> loader = make_loader(config.data, data, loader_options, false);

  Progress progress("profile", data->size(), "images");
  ProfileOptions options;
  options.order_metrics = config.order_metrics;
  options.maps = config.maps;
  options.gallery = config.gallery;
  options.progress = [&](int64_t images) { progress.update(images); };
  options.stop = [] { return stop_requested(); };
  ProfileResult result = profile_model(*model, *loader, options);
  progress.finish();
  if (stop_requested()) return;

  std::set<std::string> skipped;
  add_skipped(*loader, skipped);
  warn_skipped(skipped);

  const SparsityProfile& p = result.profile;
  size_t key = index_of(config.rank_by);
  Json summary = p.summary();
  summary["tokens"] = result.tokens;
  summary["images_per_s"] = result.images_per_s;
  summary["rank_by"] = config.rank_by;
  summary["skipped_images"] = skipped.size();
  if (config.maps) {
    NamedTensors maps;
    for (size_t i = 0; i < result.maps.size(); ++i)
      for (size_t h = 0; h < result.maps[i].size(); ++h) {
        maps.emplace_back(fmt::format("layers.{}.heads.{}.mean_map", i, h), result.maps[i][h].mean);
        summary["layers"][i]["heads"][h]["data_dependence"] = result.maps[i][h].data_dependence;
      }
    write_safetensors(run.path() / "maps.safetensors", maps);
  }
  write_file_atomic(run.path() / "profile.csv", p.csv());

  HtmlReport report("Sparsity of attention: " + model->model_name(),
                    fmt::format("{} images, {} tokens", p.images(), result.tokens));
  Table ranking = ranking_table(p, key);
  report.section("Layers, sparsest first");
  report.paragraph("Ranked by " + config.rank_by + " over patch rows (" +
                   (sparse_is_low(config.rank_by) ? "low" : "high") + " means sparse).");
  report.table(ranking);
  report.section("By layer");
  for (const char* name : {"entropy", "effective_support", "top_k_mass_5", "attention_distance"})
    report.figure(layer_curve(p, index_of(name)), std::string(name) + " by layer.");
  report.section("By layer and head");
  report.figure(head_heat_map(p, key), config.rank_by + ", mean over patch rows.");
  if (config.rank_by != "hoyer")
    report.figure(head_heat_map(p, index_of("hoyer")), "Hoyer sparsity, mean over patch rows.");
  report.section("Do the metrics agree?");
  report.figure(agreement_map(p), "Kendall's tau-b between rankings of the layers.");
  add_gallery(report, result, *data, model->shape());
  report.write(run.path() / "report.html");
  app.finish(summary);
  app.print(to_text(ranking));
  std::fprintf(stderr, "%lld images, %.0f images/s; %s\n", static_cast<long long>(p.images()),
               result.images_per_s, (run.dir() / "report.html").c_str());
}

}  // namespace
}  // namespace occam

int main(int argc, char** argv) {
  using namespace occam;
  AppInfo info;
  info.name = "profile_sparsity";
  info.summary =
      "Measures how sparse the attention of each layer and head is, by sixteen metrics, and ranks the "
      "layers.";
  info.examples = {
      "profile_sparsity model.name=deit_tiny_patch16_224 model.checkpoint=deit_tiny.safetensors "
      "data.name=folder "
      "data.root=imagenet data.split=val data.limit=1000",
      "profile_sparsity model.checkpoint=runs/a/best.safetensors data.name=cifar100 data.root=cifar-100 "
      "rank_by=hoyer maps=true"};
  return run_app<Config>(argc, argv, info, profile_app);
}
