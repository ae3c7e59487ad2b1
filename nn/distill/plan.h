#pragma once
// What a distillation is asked to do, and the runs that this comes to.
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/io/json.h"
#include "nn/profile/sparsity.h"
#include "nn/train/loop.h"
#include "nn/vit/model.h"

namespace occam {

/// One stretch of training, as flat settings. Defaults are those of stage 1.
struct StageConfig {
  std::optional<int64_t> steps;
  double epochs = 10;
  double lr = 5e-4;
  int64_t batch = 128, accumulate = 1;
  double weight_decay = 0.05, warmup = 0, min_lr = 1e-6, clip = 0, label_smoothing = 0.1, ema = 0;
  int64_t log_every = 20;

  template <class V>
  void visit(V& v) {
    v("steps", steps, "updates; unset: by epochs", Range{0, 1e9});
    v("epochs", epochs, "passes over the training images", Range{0, 1e6});
    v("lr", lr, "largest learning rate of AdamW, used as it is", Range::at_least(0));
    v("batch", batch, "images a step", Range{1, 1 << 20});
    v("accumulate", accumulate, "compute a step's batch in this many parts, to save memory", Range{1, 4096});
    v("weight_decay", weight_decay, "decoupled; never on biases, norms, tokens and the position embedding",
      Range::at_least(0));
    v("warmup", warmup, "epochs over which the rate rises linearly", Range::at_least(0));
    v("min_lr", min_lr, "rate that the cosine ends at", Range::at_least(0));
    v("clip", clip, "largest norm of all gradients together; 0 = no clipping", Range::at_least(0));
    v("label_smoothing", label_smoothing, "share of the target spread over all classes", Range{0, 0.99});
    v("ema", ema, "decay of the moving average that is judged and kept; 0 = none", Range{0, 1});
    v("log_every", log_every, "steps between log lines", Range{1, 1e9});
  }
  LoopConfig loop() const;
  int64_t steps_for(int64_t batches_per_epoch) const;
};

/// Blocks by number, or by their place in the ranking or the model. Exactly one member is set.
struct BlockChoice {
  std::optional<std::vector<int64_t>> list;
  std::optional<int64_t> sparsest, densest, first, last, random;

  template <class V>
  void visit(V& v) {
    v("list", list, "their numbers, from 0", Range::at_least(0), Shorthand{});
    v("sparsest", sparsest, "this many, sparsest first", Range::at_least(1));
    v("densest", densest, "this many, densest first", Range::at_least(1));
    v("first", first, "this many from the input", Range::at_least(1));
    v("last", last, "this many from the output", Range::at_least(1));
    v("random", random, "this many, drawn by the seed", Range::at_least(1));
  }
  void check() const;
  /// "sparsest 2"
  std::string str() const;
};

struct RunConfig {
  BlockChoice blocks;
  std::string with = "bilstm";
  MixerOptions options;

  template <class V>
  void visit(V& v) {
    v("blocks", blocks, "which blocks: [10, 11], or {sparsest: k}, densest, first, last, random");
    v("with", with, "the mixer that takes attention's place");
    v("options", options, "the mixer's own settings");
  }
};

struct DistillConfig {
  ModelConfig teacher;
  std::string profile = "auto", rank_by = "entropy";
  int64_t profile_images = 1000;
  std::string input = "student", match = "mse";
  double match_weight = 1, label_weight = 1, kd_weight = 0, kd_temperature = 3;
  StageConfig stage1, stage2{.epochs = 5, .lr = 5e-5};
  std::vector<RunConfig> runs;
  std::vector<std::string> controls{"identity", "no_op"};
  int64_t before_images = 2000;

  template <class V>
  void visit(V& v) {
    v("teacher", teacher, "the trained model whose attention is replaced");
    v("profile", profile,
      "auto: profile the teacher on held-out or training images first; or the summary.json of "
      "profile_sparsity");
    v("rank_by", rank_by, "metric that ranks the layers", Choices(sparsity_keys()));
    v("profile_images", profile_images, "images for profile=auto", Range{1, 1e9});
    v("input", input,
      "what the new modules see while matching: the student's own activations, or the teacher's "
      "(teacher-forced)",
      Choices{"student", "teacher"});
    v("match", match, "distance to the teacher's head outputs: mean square, or cosine over all channels",
      Choices{"mse", "cosine", "none"});
    v("match_weight", match_weight, "weight of the distance, summed over blocks, in stage 1",
      Range::at_least(0));
    v("label_weight", label_weight, "weight of the cross-entropy with the labels", Range::at_least(0));
    v("kd_weight", kd_weight, "weight of the KL divergence from the teacher's class probabilities",
      Range::at_least(0));
    v("kd_temperature", kd_temperature, "temperature of that divergence", Range::above(0));
    v("stage1", stage1, "trains only the new modules, to the teacher's head outputs and the labels");
    v("stage2", stage2, "trains all weights on the labels");
    v("runs", runs, "what is tried, one mapping or a list");
    v("controls", controls,
      "identity: the same blocks without a mixer; no_op: attention kept; both train for as many steps",
      Choices{"identity", "no_op"});
    v("before_images", before_images,
      "test images for the accuracy before training and the match error; 0 = all", Range::at_least(0));
  }
  void check() const;
};

/// Name of the control that keeps attention; no mixer of the table.
inline constexpr const char* kNoOp = "no_op";

/// Layers by one sparsity metric.
struct LayerRanking {
  std::string key;
  std::vector<int64_t> order;  // sparsest first; layers without attention are left out
  std::vector<double> values;  // by layer; NaN where there is none
};
LayerRanking ranking_of(const SparsityProfile& profile, const std::string& key);
/// From the summary.json of profile_sparsity. Throws Error{input} naming the file and what it lacks.
LayerRanking read_ranking(const std::filesystem::path& path, const std::string& key, int64_t depth);

struct DistillRun {
  std::string name;             // "bilstm-3-4", unique; also the student's file
  std::string asked;            // "sparsest 2"
  std::vector<int64_t> blocks;  // rising; empty for no_op
  MixerChoice mixer;            // with == kNoOp: attention kept
  double mean_sparsity = 0;     // mean of the ranking metric over the blocks; NaN for none
  bool no_op() const { return mixer.with == kNoOp; }
};

/// The runs in the order given, then the controls: identity for every set of blocks, no_op once. Equal
/// (blocks, mixer, options) are run once. Throws Error{usage} for blocks the model does not have, more blocks
/// than are ranked, and mixers or options that do not exist.
std::vector<DistillRun> plan_runs(const DistillConfig& config, const LayerRanking& ranking,
                                  const VitShape& shape, uint64_t seed);

}  // namespace occam
