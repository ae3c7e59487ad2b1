// Replaces attention by simpler mixers and shows what it cost. The method is in nn/distill; here are the
// order of the runs, checkpoints and the report.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "apps/common/model.h"
#include "apps/common/progress.h"
#include "apps/distill/report.h"
#include "core/check.h"
#include "core/io/atomic_file.h"
#include "core/rng.h"
#include "nn/distill/distill.h"
#include "nn/plan.h"
#include "nn/profile/run.h"
#include "nn/state.h"
#include "nn/train/evaluate.h"
#include "nn/train/loop.h"

namespace occam {
namespace {

struct Config : CommonConfig {
  DataConfig data;
  DistillConfig distill;
  int64_t batch = 64, save_every = 500;
  uint64_t seed = 0;

  template <class V>
  void visit(V& v) {
    CommonConfig::visit(v);
    v("data", data, "the images: training images to distil on, test images to judge by");
    v("distill", distill, "teacher, stages and runs");
    v("batch", batch, "images at a time when profiling and judging", Range{1, 1 << 16});
    v("save_every", save_every, "steps between checkpoints; one is kept after every run too", Range{1, 1e9});
    v("seed", seed, "of new weights, order, augmentation and dropout", Range::at_least(0));
  }
};

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

class Session {
 public:
  Session(App& app, Config& config)
      : app_(app),
        config_(config),
        settings_(config.distill),
        datasets_(make_datasets(resolve(config.data))) {
    ModelConfig& teacher = settings_.teacher;
    if (teacher.checkpoint.empty() && !teacher.classes) teacher.classes = datasets_.train->classes();
    teacher_ = open_model(app, teacher, config.data, config.precision, config.seed);
    if (std::string warning = check_head(*datasets_.train, teacher_->shape().classes); !warning.empty())
      warn(warning);
    if (settings_.profile == "auto") {
      // Only the order is unknown: every other error of the plan is found before work begins.
      LayerRanking any{.key = settings_.rank_by};
      any.values.assign(size_t(teacher_->shape().depth), std::nan(""));
      for (int64_t i = 0; i < teacher_->shape().depth; ++i) any.order.push_back(i);
      plan_runs(settings_, any, teacher_->shape(), config.seed);
    } else {
      ranking_ = read_ranking(settings_.profile, settings_.rank_by, teacher_->shape().depth);
      plan_runs(settings_, ranking_, teacher_->shape(), config.seed);
    }
  }

  void start() {
    run_ = &app_.start_run(config_);
    if (run_->resume_from()) read_state(*run_->resume_from());
    run_->begin_metrics(tick_);
  }

  /// False when a signal ended the work early.
  bool work() {
    if (!prepared_ && !prepare()) return save_and_stop();
    runs_ = plan_runs(settings_, ranking_, teacher_->shape(), config_.seed);
    while (results_.size() < runs_.size())
      if (!distil(runs_[results_.size()])) return save_and_stop();
    return true;
  }

  void finish() {
    warn_skipped(skipped_);
    add_no_op_column();
    Json summary = {{"teacher", teacher_json_},          {"rank_by", ranking_.key},
                    {"ranking", ranking_.order},         {"runs", results_},
                    {"images", datasets_.train->size()}, {"test_images", datasets_.test->size()},
                    {"skipped_images", skipped_.size()}};
    DistillReport report{
        .teacher = teacher_->model_name(), .ranking = ranking_, .summary = summary, .curves = curves_};
    write_report(report, run_->path() / "report.html");
    app_.finish(summary);
    app_.print(to_text(result_table(summary)));
    std::fprintf(stderr, "report: %s\n", (run_->dir() / "report.html").c_str());
  }

 private:
  /// Profiles (unless a profile was given) and judges the teacher.
  bool prepare() {
    if (settings_.profile == "auto" && !profile()) return false;
    std::optional<Evaluation> e = judge(*teacher_, datasets_.test, "teacher");
    if (!e) return false;
    teacher_json_ = {{"top1", e->top1},
                     {"params", teacher_->parameter_count()},
                     {"macs", macs_of(*teacher_)},
                     {"latency_ms", latency_ms(*teacher_)}};
    std::fprintf(stderr, "teacher: top-1 %.2f %% on %lld images\n", 100 * e->top1,
                 static_cast<long long>(e->images));
    return prepared_ = true;
  }

  bool profile() {
    DataConfig data = config_.data;
    data.split = data.holdout > 0 ? "holdout" : data.train_split;
    data.limit = settings_.profile_images;
    DatasetPtr images = make_dataset(data);
    std::unique_ptr<Loader> loader = make_loader(data, images, judging(), false);
    Progress progress("profile", images->size(), "images");
    ProfileOptions options;
    options.progress = [&](int64_t done) { progress.update(done); };
    options.stop = [] { return stop_requested(); };
    ProfileResult result = profile_model(*teacher_, *loader, options);
    if (stop_requested()) return false;
    progress.finish();
    add_skipped(*loader, skipped_);
    ranking_ = ranking_of(result.profile, settings_.rank_by);
    return true;
  }

  /// One run from surgery to the saved student, or from where a checkpoint left it.
  bool distil(const DistillRun& run) {
    student_ = make_student(settings_.teacher, run, config_.seed, app_.device(), teacher_->compute_dtype());
    bool taps = has_taps(*student_, run);
    if (current_.is_null()) {
      std::optional<Evaluation> before = judge(*student_, before_images(), run.name + " before");
      if (!before) return false;
      current_ = {{"top1_before", before->top1}, {"stage", 1}};
      curves_.erase(run.name);
    } else {
      load_student();
    }
    Distillation distillation(settings_, run, *teacher_, *student_);
    auto batches = [&](const StageConfig& stage) { return batches_per_epoch(stage); };
    StageSteps steps = steps_of(settings_, taps, batches(settings_.stage1), batches(settings_.stage2));
    for (int stage = current_["stage"]; stage <= 2; ++stage) {
      current_["stage"] = stage;
      if (!train(distillation, run, stage, stage == 1 ? steps.stage1 : steps.stage2)) return false;
    }
    return conclude(run, taps, steps.stage1 + steps.stage2);
  }

  int64_t batches_per_epoch(const StageConfig& stage) const {
    int64_t images = datasets_.train->size();
    return images >= stage.batch ? images / stage.batch : 1;
  }

  bool train(Distillation& distillation, const DistillRun& run, int stage, int64_t steps) {
    if (steps == 0) return true;
    const StageConfig& settings = stage == 1 ? settings_.stage1 : settings_.stage2;
    LoaderOptions o;
    o.batch = settings.batch;
    o.drop_last = datasets_.train->size() >= settings.batch;
    o.seed = hash_name(config_.seed, fmt::format("stage{}", stage));
    o.epochs = steps / batches_per_epoch(settings) + 2;
    o.device = app_.device();
    o.dtype = student_->compute_dtype();
    o.classes = teacher_->shape().classes;
    if (resume_folder_) o.start = {current_.at("epoch"), current_.at("batch")};
    loader_ = make_loader(config_.data, datasets_.train, o, true);
    distillation.enter(stage);
    loop_ = std::make_unique<TrainLoop>(*student_, settings.loop(), steps, batches_per_epoch(settings),
                                        hash_name(config_.seed, fmt::format("{}.stage{}", run.name, stage)));
    if (resume_folder_) loop_->load(*resume_folder_, current_);
    resume_folder_.reset();
    std::string note;
    loop_->on_log = [&](const StepLog& log) {
      note = fmt::format("loss {:.4f}, {:.0f} images/s", log.loss, log.images_per_s);
      run_->log({{"step", tick_},
                 {"run", run.name},
                 {"stage", stage},
                 {"stage_step", log.step},
                 {"loss", log.loss},
                 {"grad_norm", log.grad_norm},
                 {"lr", log.lr},
                 {"images_per_s", log.images_per_s}});
      Json& curve = curves_[run.name][stage == 1 ? "stage1" : "stage2"];
      curve["step"].push_back(log.step);
      curve["loss"].push_back(log.loss);
    };
    Progress progress(
        fmt::format("run {}/{} {} stage {}", results_.size() + 1, runs_.size(), run.name, stage), steps,
        "steps", loop_->step());
    student_->train();
    const double earlier = current_.value("train_s", 0.0);
    const auto begin = std::chrono::steady_clock::now();
    while (!loop_->done()) {
      std::optional<Batch> batch = loader_->next(loop_->place());
      if (!batch) {
        // Unreadable images that are skipped can leave too few batches.
        if (loader_->state().epoch >= o.epochs) break;
        continue;
      }
      ++tick_;
      loop_->run(*batch, [&](const Batch& part) { return distillation.loss(part); });
      current_["train_s"] =
          earlier + std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      progress.update(loop_->step(), note);
      if (stop_requested()) return false;
      if (!loop_->done() && tick_ % config_.save_every == 0) save();
    }
    loop_->flush_log();
    progress.finish(note);
    if (loop_->ema()) loop_->ema()->swap();
    add_skipped(*loader_, skipped_);
    loop_.reset();
    loader_.reset();
    return true;
  }

  bool conclude(const DistillRun& run, bool taps, int64_t steps) {
    std::optional<Evaluation> e = judge(*student_, datasets_.test, run.name);
    if (!e) return false;
    Json by_block = Json::object();
    double sum = 0;
    if (taps) {
      std::unique_ptr<Loader> loader = make_loader(config_.data, before_images(), judging(), false);
      for (auto [block, error] :
           match_errors(*teacher_, *student_, run.blocks, *loader, [] { return stop_requested(); })) {
        by_block[std::to_string(block)] = number(error);
        sum += error;
      }
      if (stop_requested()) return false;
    }
    std::string file = "students/" + run.name + ".safetensors";
    std::filesystem::create_directories(run_->path() / "students");
    save_model(run_->path() / file, *student_, {{"occam.top1", fmt::format("{:.6f}", e->top1)}});
    results_.push_back({{"name", run.name},
                        {"asked", run.asked},
                        {"blocks", run.blocks},
                        {"with", run.mixer.with},
                        {"options", run.mixer.options},
                        {"mean_sparsity", number(run.mean_sparsity)},
                        {"top1_before", current_.at("top1_before")},
                        {"top1", e->top1},
                        {"drop", teacher_json_.at("top1").get<double>() - e->top1},
                        {"params", student_->parameter_count()},
                        {"macs", macs_of(*student_)},
                        {"steps", steps},
                        {"train_s", current_.value("train_s", 0.0)},
                        {"latency_ms", latency_ms(*student_)},
                        {"match_error", taps ? number(sum / double(run.blocks.size())) : Json(nullptr)},
                        {"match_errors", by_block},
                        {"student", file}});
    std::fprintf(stderr, "%s: top-1 %.2f %% (%.2f %% before training)\n", run.name.c_str(), 100 * e->top1,
                 100 * current_.at("top1_before").get<double>());
    current_ = nullptr;
    ++tick_;
    save();
    return true;
  }

  void add_no_op_column() {
    double no_op = std::nan("");
    for (const Json& r : results_)
      if (r.at("with") == kNoOp) no_op = r.at("top1");
    for (Json& r : results_) r["drop_vs_no_op"] = number(no_op - r.at("top1").get<double>());
  }

  LoaderOptions judging() const {
    LoaderOptions o;
    o.batch = config_.batch;
    o.device = app_.device();
    return o;
  }
  DatasetPtr before_images() {
    DataConfig data = config_.data;
    data.split.clear();
    data.limit = settings_.before_images;
    return make_dataset(data);
  }
  std::optional<Evaluation> judge(VisionTransformer& model, const DatasetPtr& images,
                                  const std::string& label) {
    std::unique_ptr<Loader> loader = make_loader(config_.data, images, judging(), false);
    Progress progress("judge " + label, images->size(), "images");
    Evaluation e = evaluate(
        model, *loader,
        {.progress = [&](int64_t done) { progress.update(done); }, .stop = [] { return stop_requested(); }});
    if (stop_requested()) return {};
    add_skipped(*loader, skipped_);
    return e;
  }
  static int64_t macs_of(const VisionTransformer& model) {
    const VitShape& s = model.shape();
    return plan_of(model, {1, s.channels, s.image_size, s.image_size}).total().macs;
  }

  bool save_and_stop() {
    if (prepared_) save();
    return false;
  }
  /// The state after the last step, whole or not at all; the one before it goes.
  void save() {
    if (saved_tick_ == tick_) return;
    AtomicFolder folder(run_->checkpoint(tick_));
    if (loop_) {
      save_model(folder.temporary() / "model.safetensors", *student_);
      LoaderState at = loader_->state();
      current_["epoch"] = at.epoch, current_["batch"] = at.batch;
      loop_->save(folder.temporary(), current_);
    } else if (!current_.is_null()) {
      current_ = nullptr;  // between training and its end: the run begins anew
    }
    Json values = Json::array();
    for (double v : ranking_.values) values.push_back(number(v));
    write_json(folder.temporary() / "state.json", {{"tick", tick_},
                                                   {"ranking", ranking_.order},
                                                   {"ranking_values", values},
                                                   {"teacher", teacher_json_},
                                                   {"results", results_},
                                                   {"current", current_},
                                                   {"curves", curves_},
                                                   {"skipped", skipped_}});
    folder.commit();
    saved_tick_ = tick_;
    for (int64_t step : run_->checkpoint_steps())
      if (step < tick_) std::filesystem::remove_all(run_->checkpoint(step));
  }

  void read_state(const std::filesystem::path& folder) {
    std::filesystem::path path = folder / "state.json";
    Json state = read_json(path);
    try {
      tick_ = saved_tick_ = state.at("tick");
      ranking_.key = settings_.rank_by;
      ranking_.order = state.at("ranking").get<std::vector<int64_t>>();
      ranking_.values.clear();
      for (const Json& v : state.at("ranking_values"))
        ranking_.values.push_back(v.is_null() ? std::nan("") : v.get<double>());
      teacher_json_ = state.at("teacher");
      results_ = state.at("results").get<std::vector<Json>>();
      current_ = state.at("current");
      curves_ = state.at("curves");
      skipped_ = state.at("skipped").get<std::set<std::string>>();
    } catch (const nlohmann::json::exception&) {
      fail(ErrorKind::input,
           fmt::format("{}: this is not the state of a distillation; resume from another checkpoint or "
                       "start anew with out.overwrite=true",
                       path.string()));
    }
    prepared_ = true;
    if (!current_.is_null()) resume_folder_ = folder;
  }
  void load_student() {
    std::filesystem::path path = *resume_folder_ / "model.safetensors";
    Safetensors weights(path);
    load_state_dict(*student_, tensors_of(weights), {.source = path.string()});
  }

  App& app_;
  Config& config_;
  DistillConfig& settings_;
  Datasets datasets_;
  std::unique_ptr<VisionTransformer> teacher_, student_;
  LayerRanking ranking_;
  std::vector<DistillRun> runs_;
  RunFolder* run_ = nullptr;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<TrainLoop> loop_;

  bool prepared_ = false;  // the ranking and the teacher's figures are there
  Json teacher_json_;
  std::vector<Json> results_;  // finished runs, in order
  Json current_;               // of the run in the making; null between runs
  Json curves_ = Json::object();
  std::optional<std::filesystem::path> resume_folder_;  // until its state has been taken over
  int64_t tick_ = 0;  // steps of all runs, and one for each run's end: numbers checkpoints
  int64_t saved_tick_ = -1;
  std::set<std::string> skipped_;  // unreadable images, each with its path and reason
};

}  // namespace
}  // namespace occam

int main(int argc, char** argv) {
  using namespace occam;
  AppInfo info;
  info.name = "distill";
  info.summary =
      "Replaces the attention of some layers by a simpler mixer, trains it to do the same, and shows what it "
      "cost.";
  info.examples = {"distill distill.yaml distill.stage2.epochs=5",
                   "distill distill.teacher.checkpoint=runs/teacher/best.safetensors data.name=cifar100 "
                   "data.root=cifar-100 'distill.runs=[{blocks: {sparsest: 2}, with: bilstm}, {blocks: [0, "
                   "1], with: bilstm}]'",
                   "distill config.yaml out.dir=runs/d --resume auto"};
  info.resumes = true;
  return run_app<Config>(argc, argv, info, [](App& app, Config& config) {
    Session session(app, config);
    session.start();
    if (session.work()) session.finish();
  });
}
