// Trains or fine-tunes a vision transformer. The work is in nn/train; here are settings, checkpoints and the
// report.
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "apps/common/model.h"
#include "apps/common/progress.h"
#include "core/check.h"
#include "core/io/atomic_file.h"
#include "core/report/html.h"
#include "core/report/svg.h"
#include "nn/prof/ceilings.h"
#include "nn/prof/step_profile.h"
#include "nn/state.h"
#include "nn/train/evaluate.h"
#include "nn/train/loop.h"
#include "nn/train/loss.h"

namespace occam {
namespace {

constexpr const char* kBestFile = "best.safetensors";

struct TrainSettings : LoopConfig {
  int64_t epochs = 10;
  double label_smoothing = 0.1;
  uint64_t seed = 0;
  int64_t limit_batches = 0;
  int64_t eval_every = 1, save_every = 1;
  int64_t profile_steps = 0;

  template <class V>
  void visit(V& v) {
    v("epochs", epochs, "passes over the training images", Range{1, 1e6});
    LoopConfig::visit(v);
    v("label_smoothing", label_smoothing, "share of the target spread over all classes", Range{0, 0.99});
    v("seed", seed, "of initial weights, order, augmentation and dropout", Range::at_least(0));
    v("limit_batches", limit_batches, "stop after this many batches and evaluate as many: a dry run; 0 = off",
      Range::at_least(0));
    v("eval_every", eval_every, "epochs between evaluations; the last epoch is always evaluated",
      Range{1, 1e6});
    v("save_every", save_every, "epochs between checkpoints", Range{1, 1e6});
    v("profile_steps", profile_steps,
      "record this many of the first steps: profile.md tells where their time and memory goes, trace.json "
      "opens in chrome://tracing; 0 = none",
      Range{0, 100});
  }
};

struct Config : CommonConfig {
  ModelConfig model;
  DataConfig data;
  TrainSettings train;

  template <class V>
  void visit(V& v) {
    CommonConfig::visit(v);
    v("model", model, "what is trained");
    v("data", data, "what it is trained on");
    v("train", train, "how");
  }
};

Tensor loss_of(VisionTransformer& model, const Batch& batch, double smoothing) {
  return label_loss(model.logits(raw::to(batch.images, model.compute_dtype())), batch, smoothing);
}

/// One training run with its curves.
class Run {
 public:
  Run(App& app, Config& config)
      : app_(app), config_(config), settings_(config.train), datasets_(make_datasets_of(config)) {
    model_ = open_model(app, config.model, config.data, config.precision, settings_.seed,
                        datasets_.train->classes());
    if (std::string warning = check_head(*datasets_.train, model_->shape().classes); !warning.empty())
      warn(warning);
    judge_ = datasets_.holdout ? datasets_.holdout : datasets_.test;
  }

  void start() {
    run_ = &app_.start_run(config_);
    loader_ = make_loader(config_.data, datasets_.train, loader_options({}), true);
    int64_t per_epoch = loader_->batches_per_epoch(), steps = settings_.epochs * per_epoch;
    if (settings_.limit_batches > 0) steps = std::min(steps, settings_.limit_batches);
    loop_ = std::make_unique<TrainLoop>(*model_, settings_, steps, per_epoch, settings_.seed);
    loop_->on_log = [this](const StepLog& log) { log_step(log); };
    if (settings_.profile_steps > 0)
      profile_ = std::make_unique<StepProfile>(
          *model_, optimizer_bytes(*model_, settings_.optim, settings_.ema > 0), settings_.profile_steps);
    loop_->set_capture(settings_.capture && !profile_);
    rate_ = std::make_unique<ModelRate>(*model_, model_->shape().image());
    if (run_->resume_from()) resume(*run_->resume_from());
    run_->begin_metrics(loop_->step());
    if (app_.device().is_cuda()) std::fprintf(stderr, "pixels: %s\n", loader_->residence().text.c_str());
  }

  /// False when a signal ended the run early.
  bool work() {
    Progress progress("train", loop_->steps(), "steps", loop_->step());
    model_->train();
    // Unreadable images that are skipped can leave out whole batches: then the epochs end before the steps.
    bool finished = loop_->done();
    while (!finished) {
      std::optional<Batch> batch = loader_->next(loop_->place());
      if (batch) {
        step(*batch);
        progress.update(loop_->step(), last_log_);
      }
      int64_t epoch = loader_->state().epoch;
      bool epoch_ended = !batch;
      finished = loop_->done() || epoch >= settings_.epochs;
      if (epoch_ended && !finished && epoch % settings_.eval_every == 0) judge();
      if (stop_requested()) {
        loop_->check_finite();
        save();
        return false;
      }
      if (epoch_ended && !finished && epoch % settings_.save_every == 0) save();
    }
    OCCAM_CHECK(loop_->step() > 0, ErrorKind::input, "no training image could be read: {}",
                loader_->skipped().empty() ? "none is there" : loader_->skipped().begin()->second);
    loop_->flush_log();
    progress.finish(last_log_);
    if (judged_step_ != loop_->step()) judge();
    save();
    return true;
  }

  void finish() {
    warn_skipped(skipped_);
    if (profile_)
      warn(fmt::format("no profile was written: train.profile_steps={} takes {} steps, the run had {}",
                       settings_.profile_steps, profile_->needed(), loop_->step()));
    save_model(run_->path() / "model.safetensors", *model_);
    if (loop_->ema()) {
      UseEma averages(loop_->ema());
      save_model(run_->path() / "ema.safetensors", *model_);
    }
    Json summary = {{"steps", loop_->step()},
                    {"epochs", settings_.epochs},
                    {"images", datasets_.train->size()},
                    {"evaluated_on", datasets_.holdout ? "holdout" : "test"},
                    {"top1", eval_top1_.empty() ? Json(nullptr) : Json(eval_top1_.back())},
                    {"best_top1", best_},
                    {"best_step", best_step_},
                    {"loss", losses_.empty() ? Json(nullptr) : Json(losses_.back())},
                    {"params", model_->parameter_count()},
                    {"skipped_images", skipped_.size()},
                    {"model", "model.safetensors"},
                    {"best", kBestFile}};
    if (loop_->ema()) summary["ema"] = "ema.safetensors";
    write_report(summary);
    app_.finish(summary);
    std::fprintf(stderr, "top-1 %.2f %% (best %.2f %% at step %lld) on %s; %s\n",
                 100 * (eval_top1_.empty() ? 0 : eval_top1_.back()), 100 * best_,
                 static_cast<long long>(best_step_),
                 datasets_.holdout ? "the held-out images" : "the test images", run_->dir().c_str());
  }

 private:
  static Datasets make_datasets_of(const Config& config) { return make_datasets(resolve(config.data)); }

  LoaderOptions loader_options(LoaderState start) const {
    LoaderOptions o;
    o.batch = settings_.batch;
    o.drop_last = datasets_.train->size() >= settings_.batch;
    o.seed = settings_.seed;
    o.epochs = settings_.epochs;
    o.device = app_.device();
    o.dtype = model_->compute_dtype();
    o.start = start;
    o.classes = model_->shape().classes;
    return o;
  }

  void step(const Batch& batch) {
    auto work = [&] {
      loop_->run(batch, [&](const Batch& part) { return loss_of(*model_, part, settings_.label_smoothing); });
    };
    if (!profile_) return work();
    profile_->run(work);
    if (!profile_->done()) return;
    profile_->write(run_->path());
    std::fprintf(stderr, "%s\n%s\n", profile_->profiler().summary().c_str(),
                 profile_->memory().summary().c_str());
    profile_.reset();
    loop_->set_capture(settings_.capture);
  }

  void log_step(const StepLog& log) {
    last_log_ = fmt::format("loss {:.4f}, grad {:.2f}, lr {:.2e}, {:.0f} images/s{}", log.loss, log.grad_norm,
                            log.lr, log.images_per_s, rate_->text(log.images_per_s));
    Json line = {{"step", log.step},           {"epoch", log.epoch}, {"loss", log.loss},
                 {"grad_norm", log.grad_norm}, {"lr", log.lr},       {"images_per_s", log.images_per_s}};
    const ModelRate::Share mfu = rate_->share(log.images_per_s);
    if (mfu.of_measured > 0) line["mfu_measured"] = mfu.of_measured;
    if (mfu.of_datasheet > 0) line["mfu_datasheet"] = mfu.of_datasheet;
    run_->log(line);
    loss_epochs_.push_back(log.epoch);
    losses_.push_back(log.loss);
  }

  /// Evaluates (with the averages, when there are any) and keeps the best weights.
  void judge() {
    loop_->check_finite();
    UseEma averages(loop_->ema());
    LoaderOptions o;
    o.batch = settings_.batch;
    o.device = app_.device();
    std::unique_ptr<Loader> loader = make_loader(config_.data, judge_, o, false);
    EvaluateOptions options;
    int64_t batches = 0;
    if (settings_.limit_batches > 0) options.stop = [&] { return batches++ >= settings_.limit_batches; };
    Evaluation e = evaluate(*model_, *loader, options);
    add_skipped(*loader, skipped_);
    judged_step_ = loop_->step();
    double epoch = double(loop_->step()) / double(loader_->batches_per_epoch());
    run_->log({{"step", loop_->step()},
               {"epoch", epoch},
               {"eval_top1", e.top1},
               {"eval_top5", e.top5},
               {"eval_loss", e.loss}});
    eval_epochs_.push_back(epoch);
    eval_top1_.push_back(e.top1);
    std::fprintf(stderr, "epoch %.0f: top-1 %.2f %%, loss %.4f on %lld images\n", epoch, 100 * e.top1, e.loss,
                 static_cast<long long>(e.images));
    if (best_step_ < 0 || e.top1 > best_) {
      best_ = e.top1;
      best_step_ = loop_->step();
      save_model(run_->path() / kBestFile, *model_, {{"occam.top1", fmt::format("{:.6f}", e.top1)}});
    }
  }

  /// The state after the last step, whole or not at all; the one before it goes.
  void save() {
    AtomicFolder folder(run_->checkpoint(loop_->step()));
    save_model(folder.temporary() / "model.safetensors", *model_);
    LoaderState at = loader_->state();
    add_skipped(*loader_, skipped_);
    Json state = {{"epoch", at.epoch},           {"batch", at.batch},           {"best_top1", best_},
                  {"best_step", best_step_},     {"loss_epochs", loss_epochs_}, {"losses", losses_},
                  {"eval_epochs", eval_epochs_}, {"eval_top1", eval_top1_},     {"judged_step", judged_step_},
                  {"skipped", skipped_}};
    loop_->save(folder.temporary(), state);
    write_json(folder.temporary() / "state.json", state);
    folder.commit();
    for (int64_t step : run_->checkpoint_steps())
      if (step < loop_->step()) std::filesystem::remove_all(run_->checkpoint(step));
  }

  void resume(const std::filesystem::path& folder) {
    const std::filesystem::path file = folder / "state.json";
    Json state = read_json(file);
    Safetensors weights(folder / "model.safetensors");
    load_state_dict(*model_, tensors_of(weights), {.source = (folder / "model.safetensors").string()});
    LoaderState at;
    try {
      loop_->load(folder, state);
      at = {state.at("epoch"), state.at("batch")};
      best_ = state.at("best_top1"), best_step_ = state.at("best_step"),
      judged_step_ = state.at("judged_step");
      loss_epochs_ = state.at("loss_epochs").get<std::vector<double>>();
      losses_ = state.at("losses").get<std::vector<double>>();
      eval_epochs_ = state.at("eval_epochs").get<std::vector<double>>();
      eval_top1_ = state.at("eval_top1").get<std::vector<double>>();
      skipped_ = state.at("skipped").get<std::set<std::string>>();
    } catch (const Json::exception& e) {
      std::string reason = e.what();  // after "[json.exception...] "
      fail(ErrorKind::input,
           fmt::format(
               "{}: this is not the state of a training run ({}); resume from another checkpoint or start "
               "anew",
               file.string(), reason.substr(reason.find("] ") + 2)));
    }
    // The best weights stay with the run that found them.
    if (!std::filesystem::exists(run_->path() / kBestFile)) best_ = 0, best_step_ = -1, judged_step_ = -1;
    loader_ = make_loader(config_.data, datasets_.train, loader_options(at), true);
  }

  void write_report(const Json& summary) const {
    HtmlReport report("Training of " + model_->model_name(), run_->dir().string());
    report.highlights({{fmt::format("{:.2f} %", 100 * (eval_top1_.empty() ? 0 : eval_top1_.back())),
                        "top-1 after the last step"},
                       {fmt::format("{:.2f} %", 100 * best_), "best top-1"},
                       {std::to_string(model_->parameter_count()), "parameters"}});
    report.section("Curves");
    ChartOptions loss{.title = "Training loss",
                      .description = "Mean training loss between log lines by epoch."};
    loss.x.label = "epoch", loss.y.label = "loss";
    report.figure(line_chart(loss, {{.name = "loss", .x = loss_epochs_, .y = losses_}}), "Training loss.");
    ChartOptions accuracy{.title = "Accuracy", .description = "Top-1 accuracy by epoch."};
    accuracy.x.label = "epoch", accuracy.y.label = "top-1", accuracy.y.percent = true;
    report.figure(line_chart(accuracy, {{.name = "top-1", .x = eval_epochs_, .y = eval_top1_}}),
                  datasets_.holdout ? "Top-1 on the held-out training images." : "Top-1 on the test images.");
    report.section("Summary");
    report.code(dump_json(summary));
    report.write(run_->path() / "report.html");
  }

  App& app_;
  Config& config_;
  const TrainSettings& settings_;
  Datasets datasets_;
  DatasetPtr judge_;
  std::unique_ptr<VisionTransformer> model_;
  RunFolder* run_ = nullptr;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<TrainLoop> loop_;
  std::unique_ptr<StepProfile> profile_;  // until it has been written
  std::unique_ptr<ModelRate> rate_;
  std::string last_log_;
  double best_ = 0;
  int64_t best_step_ = -1, judged_step_ = -1;
  std::set<std::string> skipped_;  // unreadable images, each with its path and reason
  std::vector<double> loss_epochs_, losses_, eval_epochs_, eval_top1_;
};

}  // namespace
}  // namespace occam

int main(int argc, char** argv) {
  using namespace occam;
  AppInfo info;
  info.name = "train";
  info.summary =
      "Trains or fine-tunes a vision transformer and keeps the last, the best and the averaged weights.";
  info.examples = {
      "train data.name=fashion_mnist model.name=vit model.image_size=28 model.patch=4 model.dim=64 "
      "model.depth=6 "
      "train.epochs=20 out.dir=runs/a",
      "train data.name=cifar10 data.root=cifar-10-batches-bin model.name=vit model.dim=192 model.patch=4 "
      "train.epochs=50",
      "train model.checkpoint=deit_tiny.safetensors model.name=deit_tiny_patch16_224 model.new_head=true "
      "data.name=folder data.root=flowers",
      "train config.yaml out.dir=runs/a --resume auto"};
  info.resumes = true;
  return run_app<Config>(argc, argv, info, [](App& app, Config& config) {
    Run run(app, config);
    run.start();
    if (run.work()) run.finish();
  });
}
