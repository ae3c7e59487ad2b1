// How fast models, ops and the steps of a ladder are here, and the rows of the comparison with PyTorch.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "apps/bench/columns.h"
#include "apps/bench/ladder.h"
#include "apps/bench/mixer.h"
#include "apps/bench/model.h"
#include "apps/bench/op.h"
#include "apps/bench/rows.h"
#include "apps/common/environment.h"
#include "apps/common/model.h"
#include "apps/common/progress.h"
#include "core/check.h"
#include "core/report/html.h"

namespace occam {
namespace {

struct BenchConfig {
  std::vector<std::string> mode{"infer", "train"};
  std::vector<int64_t> batch;
  std::string metrics = "all", mixer = "bilstm", input = "device", file = "runs/bench/agree";
  std::optional<int64_t> samples;
  std::optional<double> sample_s;
  std::vector<std::string> mixers;
  std::vector<int64_t> tokens;
  double cell_s = 2;
  int64_t profile_steps = 0;
  bool tiny = false;

  template <class V>
  void visit(V& v) {
    v("mode", mode,
      "model: forward; forward, loss, backward and AdamW; forward with the statistics of every attention; a "
      "teacher-forced step of distillation's first stage. mixer: infer: forward; train: forward and "
      "backward. "
      "One or a list",
      Choices{"infer", "train", "profile", "distill"}, Shorthand{});
    v("batch", batch,
      "images at a time; model, mixer: one or a list, op: one; unset: model: 1 and 8, on a GPU 1 and 256; "
      "mixer: 1 and 8, on a GPU 1, 16 and 256; op: 8, on a GPU 256",
      Range{1, 1 << 16});
    v("metrics", metrics, "profile: all, or the ones that need no order of a row's entries",
      Choices{"all", "streaming"});
    v("mixer", mixer, "distill: what takes attention's place in every block");
    v("input", input, "train: one batch that is on the device, or batches of the loader from `data`",
      Choices{"device", "loader"});
    v("file", file, "agree: writes FILE.safetensors and FILE.io.safetensors");
    v("samples", samples, "timings of which the median is taken; unset: 20, mixer: 5", Range{3, 1000});
    v("sample_s", sample_s,
      "least seconds of a timing: as many steps as that takes; unset: 0.1, of an op or a ladder's step 0.02, "
      "mixer: bench.cell_s / (samples + 7)",
      Range{0, 60});
    v("mixers", mixers, "mixer all: only these, beside attention and identity; unset: every one");
    v("tokens", tokens,
      "mixer: lengths, each one class token and a square of patches, unset: 65, 197, 577, 1025, 2305, 4097; "
      "op: one, unset: 197",
      Range{2, 1 << 16});
    v("cell_s", cell_s,
      "mixer: seconds of a length and batch, which is left out where samples + 7 steps are predicted to take "
      "longer",
      Range{0.01, 3600});
    v("profile_steps", profile_steps,
      "model: so many steps are also profiled, eagerly: out.dir/<mode>-<batch>/profile.md has time, work and "
      "memory by op and module, trace.json each call; 0: none",
      Range{0, 1000});
    v("tiny", tiny,
      "row, op, agree: small sizes on any device, to see that they work; model: ceilings measured on little "
      "data");
  }
};

struct Config : CommonConfig {
  ModelConfig model;
  BenchConfig bench;
  DataConfig data;

  template <class V>
  void visit(V& v) {
    CommonConfig::visit(v);
    v("model", model, "what is timed; unset: deit_tiny_patch16_224; mixer, agree: deit_small_patch16_224");
    v("bench", bench, "how it is timed");
    v("data", data, "with bench.input=loader: what is trained on");
  }
};

class Bench {
 public:
  Bench(App& app, Config& config) : app_(app), config_(config) {
    const bool kernels = app.verb() == "op" || app.verb() == "ladder", mixers = app.verb() == "mixer";
    timing_.samples = config.bench.samples.value_or(mixers ? 5 : 20);
    timing_.sample_s =
        config.bench.sample_s.value_or(mixers    ? config.bench.cell_s / double(least_steps(timing_.samples))
                                       : kernels ? 0.02
                                                 : 0.1);
  }

  void run() {
    const std::string& verb = app_.verb();
    const std::string& name = app_.arguments().operand;
    const bool takes_name = verb == "op" || verb == "row" || verb == "ladder" || verb == "mixer";
    OCCAM_CHECK(takes_name || name.empty(), ErrorKind::usage, "bench {} takes no name, and '{}' was given",
                verb, name);
    OCCAM_CHECK(!takes_name || !name.empty(), ErrorKind::usage, "bench {} which? {}", verb,
                verb == "op" || verb == "mixer" ? std::string("A name, or all")
                : verb == "row"                 ? std::string("A name, all or list")
                                : "Ladders here: " + fmt::format("{}", fmt::join(ladder_names(), ", ")));
    OCCAM_CHECK(config_.bench.profile_steps == 0 || (verb == "model" && !config_.out.dir.empty()),
                ErrorKind::usage,
                "bench.profile_steps is for bench model, and needs out.dir=FOLDER for what it writes");
    OCCAM_CHECK(!config_.bench.mode.empty(), ErrorKind::usage, "bench.mode is empty; name one or more");
    OCCAM_CHECK(config_.bench.mixers.empty() || verb != "mixer" || name == "all", ErrorKind::usage,
                "bench.mixers is for bench mixer all, and '{}' was given", name);
    for (const std::string& mixer : config_.bench.mixers) find_mixer(mixer);
    find_mixer(config_.bench.mixer);
    if (verb == "row" && name == "list") return list_rows();
    if (verb == "agree") return agree();
    OCCAM_CHECK(
        config_.bench.tokens.empty() || verb == "mixer" || verb == "op", ErrorKind::usage,
        "bench.tokens is for bench mixer and bench op; a model's tokens follow from model.image_size");
    const std::vector<std::function<void()>> parts = verb == "model"   ? models()
                                                     : verb == "row"   ? rows(name)
                                                     : verb == "op"    ? ops(name)
                                                     : verb == "mixer" ? mixers(name)
                                                                       : ladder(name);
    app_.checked();
    if (!config_.out.dir.empty()) folder_ = &app_.start_run(config_);
    Progress progress("bench", int64_t(parts.size()), "parts");
    size_t done = 0;
    while (done < parts.size() && !stop_requested()) {
      parts[done]();
      if (!stop_requested()) progress.update(int64_t(++done));
    }
    const bool stopped = done < parts.size();
    if (!stopped) progress.finish();
    if (lines_.empty()) tell_stop(stopped);
    const std::string device = app_.device().is_cuda() ? device_name() : "cpu";
    app_.print(device + "\n" + to_text(table_of(lines_)));
    for (const MixerSweep& sweep : sweeps_)
      app_.print(sweep.pass() + "\n" + to_text(crossover_table(sweep, lines_)));
    if (folder_ != nullptr) {
      HtmlReport report("Speed", device);
      if (stopped) report.note("The run was stopped before its end: this is what had been timed.");
      for (const MixerSweep& sweep : sweeps_) mixer_report(report, sweep, lines_);
      report.table(table_of(lines_));
      report.write(folder_->path() / "report.html");
    }
    tell_stop(stopped);
    app_.finish({{"device", device}, {"rows", lines_}});
  }

 private:
  using Parts = std::vector<std::function<void()>>;

  void keep(const Json& line) {
    if (stop_requested()) return;  // it may have been cut short
    lines_.push_back(line);
    app_.line(line);
    if (folder_ != nullptr) folder_->log(line);
  }

  /// A run that was stopped has no summary.json, and tells where what it timed is.
  void tell_stop(bool stopped) const {
    const std::string where = folder_ == nullptr
                                  ? std::string("what was timed is above, and saved nowhere without out.dir")
                                  : fmt::format("what was timed is in metrics.jsonl and report.html of {}",
                                                folder_->path().string());
    OCCAM_CHECK(!stopped, ErrorKind::system, "stopped before the end; {}",
                lines_.empty() ? std::string("nothing was timed yet") : where);
  }

  Parts models() {
    if (config_.model.name.empty() && config_.model.checkpoint.empty())
      config_.model.name = "deit_tiny_patch16_224";
    if (config_.bench.batch.empty()) config_.bench.batch = {1, app_.device().is_cuda() ? 256 : 8};
    make_model(config_.model);  // wrong settings end here
    Parts parts;
    for (const std::string& mode : config_.bench.mode)
      for (int64_t batch : config_.bench.batch)
        parts.push_back([this, mode, batch] {
          ModelJob job;
          job.model = config_.model;
          job.mode = mode;
          job.batch = batch;
          job.precision = config_.precision;
          job.device = app_.device();
          job.order_metrics = config_.bench.metrics == "all";
          job.mixer = config_.bench.mixer;
          if (config_.bench.input == "loader") job.data = config_.data;
          job.tiny = config_.bench.tiny;
          job.profile_steps = config_.bench.profile_steps;
          if (folder_ != nullptr) job.profile_folder = folder_->path() / fmt::format("{}-{}", mode, batch);
          keep(time_model(job, timing_));
        });
    return parts;
  }

  Parts rows(const std::string& name) {
    const RowContext context{app_.device(), config_.precision, timing_, config_.bench.tiny};
    Parts parts;
    if (name != "all") {
      const BenchRow& row = find_row(name);
      parts.push_back([this, &row, context] { keep(row.time(context)); });
      return parts;
    }
    for (const BenchRow& row : bench_rows())
      if (!row.on_gpu || context.device.is_cuda() || context.tiny)
        parts.push_back([this, &row, context] { keep(row.time(context)); });
    if (parts.size() < bench_rows().size())
      warn(fmt::format("{} rows are for a GPU and are left out", bench_rows().size() - parts.size()));
    return parts;
  }

  void list_rows() {
    app_.checked();
    const Json commit = describe_environment("bench", {}, kCPU).at("commit");
    for (const BenchRow& row : bench_rows()) {
      Json line = row.describe();
      line["commit"] = commit;
      app_.line(line);
      app_.print(row.name + "\n");
    }
    app_.finish({});
  }

  Parts ops(const std::string& name) {
    OpSizes sizes;
    if (!app_.device().is_cuda()) sizes.batch = 8;
    if (config_.bench.tiny)
      sizes = {.batch = 2,
               .tokens = 5,
               .dim = 128,
               .heads = 2,
               .classes = 10,
               .image = 16,
               .patch = 8,
               .parameters = 1000};
    OCCAM_CHECK(config_.bench.batch.size() <= 1, ErrorKind::usage, "bench op: bench.batch is one number");
    if (!config_.bench.batch.empty()) sizes.batch = config_.bench.batch[0];
    OCCAM_CHECK(config_.bench.tokens.size() <= 1, ErrorKind::usage, "bench op: bench.tokens is one number");
    if (!config_.bench.tokens.empty()) sizes.tokens = config_.bench.tokens[0];
    const DType dtype = compute_dtype_of(config_.precision);
    const std::vector<OpCase> cases = op_cases(name, sizes, app_.device(), dtype);
    OCCAM_CHECK(!cases.empty(), ErrorKind::usage,
                "op '{}' is a view, or has no case in apps/bench/op_cases.cpp", name);
    if (name == "all")
      if (const std::vector<std::string> missing = ops_without_case(); !missing.empty())
        warn(fmt::format("without a case: {}", fmt::join(missing, ", ")));
    Parts parts;
    for (const OpCase& c : cases)
      parts.push_back([this, c, dtype] {
        for (const Json& line : time_op(c, app_.device(), dtype, timing_, config_.bench.tiny)) keep(line);
      });
    return parts;
  }

  Parts ladder(const std::string& name) {
    return {[this, name] {
      climb_ladder(name, app_.device(), timing_, [this](const Json& line) { keep(line); });
    }};
  }

  Parts mixers(const std::string& name) {
    ModelConfig model = config_.model;
    if (model.name.empty() && model.checkpoint.empty()) model.name = "deit_small_patch16_224";
    const VitShape shape = make_model(model)->shape();
    std::vector<std::string> wanted = config_.bench.mixers;
    if (name != "all") wanted.insert(wanted.begin(), name);
    if (name == "all" && wanted.empty())
      for (const MixerEntry& entry : mixer_table()) wanted.emplace_back(entry.name);
    MixerSweep sweep{.dim = shape.dim, .heads = shape.heads, .mlp_hidden = shape.mlp_hidden()};
    sweep.mixers = {"attention", "identity"};
    for (const std::string& mixer : wanted)
      if (std::find(sweep.mixers.begin(), sweep.mixers.end(), mixer) == sweep.mixers.end())
        sweep.mixers.push_back(mixer);
    sweep.tokens = config_.bench.tokens;
    if (sweep.tokens.empty()) sweep.tokens = {65, 197, 577, 1025, 2305, 4097};
    sweep.batches = config_.bench.batch;
    if (sweep.batches.empty())
      sweep.batches = app_.device().is_cuda() ? std::vector<int64_t>{1, 16, 256} : std::vector<int64_t>{1, 8};
    for (std::vector<int64_t>* values : {&sweep.tokens, &sweep.batches}) {
      std::sort(values->begin(), values->end());
      values->erase(std::unique(values->begin(), values->end()), values->end());
    }
    sweep.dtype = compute_dtype_of(config_.precision);
    sweep.device = app_.device();
    sweep.cell_s = config_.bench.cell_s;
    sweep.timing = timing_;
    check_sweep(sweep);
    std::set<std::string> modes;
    for (const std::string& mode : config_.bench.mode) {
      OCCAM_CHECK(mode == "infer" || mode == "train", ErrorKind::usage,
                  "bench mixer: bench.mode is infer or train, not {}", mode);
      if (!modes.insert(mode).second) continue;
      sweep.backward = mode == "train";
      sweeps_.push_back(sweep);
    }
    Parts parts;
    for (const MixerSweep& one : sweeps_)
      for (const std::string& mixer : one.mixers)
        for (int64_t batch : one.batches)
          parts.push_back([this, &one, mixer, batch] {
            run_mixer_cells(one, mixer, batch, [this](const Json& line) { keep(line); });
          });
    return parts;
  }

  void agree() {
    ModelConfig model = config_.model;
    if (config_.bench.tiny) {
      model = {};
      model.name = "vit", model.image_size = 16, model.patch = 8, model.dim = 128, model.depth = 2;
      model.heads = 2, model.classes = 10;
    } else if (model.name.empty() && model.checkpoint.empty()) {
      model.name = "deit_small_patch16_224";
    }
    app_.checked();
    write_agreement(model, app_.device(), config_.bench.file);
    const Json written = {{"who", "occam"},
                          {"what", "agree"},
                          {"model", config_.bench.file + ".safetensors"},
                          {"io", config_.bench.file + ".io.safetensors"}};
    app_.line(written);
    app_.print(dump_json(written));
    app_.finish(written);
  }

  App& app_;
  Config& config_;
  TimingOptions timing_;
  std::vector<MixerSweep> sweeps_;  // mixer: one a mode
  RunFolder* folder_ = nullptr;     // null: nothing is written
  std::vector<Json> lines_;
};

}  // namespace
}  // namespace occam

int main(int argc, char** argv) {
  using namespace occam;
  AppInfo info;
  info.name = "bench";
  info.summary =
      "Times models (inference, training, profile, distillation), single ops against their roofline, mixers "
      "against attention over lengths and batches, ladders of kernels, and the rows of the comparison with "
      "PyTorch. With --json a line each.";
  info.examples = {
      "bench model model.name=deit_small_patch16_224 bench.mode=train bench.batch=256 precision=bf16",
      "bench model model.checkpoint=runs/d/students/bilstm-1-2.safetensors bench.mode=infer",
      "bench op layer_norm",
      "bench mixer bilstm bench.batch=[1,256] out.dir=runs/mixers",
      "bench ladder softmax",
      "bench row train_S_256 --json"};
  info.verbs = {"model", "op", "mixer", "ladder", "row", "agree"};
  info.operand = "NAME";
  info.run_folder = false;
  return run_app<Config>(argc, argv, info, [](App& app, Config& config) { Bench(app, config).run(); });
}
