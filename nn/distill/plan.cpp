#include "nn/distill/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "core/check.h"
#include "core/rng.h"

namespace occam {

LoopConfig StageConfig::loop() const {
  LoopConfig c;
  c.optim.lr = lr;
  c.optim.weight_decay = weight_decay;
  c.optim.clip = clip;
  c.schedule.warmup = warmup;
  c.schedule.min_lr = std::min(min_lr, lr);
  c.batch = batch;
  c.accumulate = accumulate;
  c.ema = ema;
  c.log_every = log_every;
  return c;
}

int64_t StageConfig::steps_for(int64_t batches_per_epoch) const {
  return steps ? *steps : int64_t(std::ceil(epochs * double(batches_per_epoch) - 1e-9));
}

void BlockChoice::check() const {
  int set = list.has_value() + sparsest.has_value() + densest.has_value() + first.has_value() +
            last.has_value() + random.has_value();
  OCCAM_CHECK(set == 1, ErrorKind::usage,
              "blocks need exactly one of list, sparsest, densest, first, last, random; {} are set", set);
}

std::string BlockChoice::str() const {
  if (list) return "given";
  if (sparsest) return fmt::format("sparsest {}", *sparsest);
  if (densest) return fmt::format("densest {}", *densest);
  if (first) return fmt::format("first {}", *first);
  if (last) return fmt::format("last {}", *last);
  return fmt::format("random {}", random.value_or(0));
}

void DistillConfig::check() const {
  OCCAM_CHECK(match == "none" || match_weight > 0 || label_weight > 0 || kd_weight > 0, ErrorKind::usage,
              "match_weight, label_weight and kd_weight are all 0: nothing is left to train for");
  OCCAM_CHECK(label_weight > 0 || kd_weight > 0, ErrorKind::usage,
              "label_weight and kd_weight are both 0: stage 2 would have no loss");
}

LayerRanking ranking_of(const SparsityProfile& profile, const std::string& key) {
  std::vector<std::string> keys = sparsity_keys();
  auto index = size_t(std::find(keys.begin(), keys.end(), key) - keys.begin());
  OCCAM_CHECK(index < keys.size(), ErrorKind::usage, "no sparsity metric is called '{}'; {}", key,
              name_hint(key, keys));
  LayerRanking r{.key = key, .order = profile.ranking(index)};
  for (int64_t i = 0; i < profile.layers(); ++i) r.values.push_back(profile.ranking_value(i, index));
  return r;
}

LayerRanking read_ranking(const std::filesystem::path& path, const std::string& key, int64_t depth) {
  Json summary = read_json(path);
  LayerRanking r{.key = key};
  try {
    r.order = summary.at("ranking").at(key).get<std::vector<int64_t>>();
    for (const Json& layer : summary.at("layers")) {
      const Json value = layer.is_null() ? Json() : layer.at("patch").at(key);
      const Json fallback = layer.is_null() ? Json() : layer.at("mean").at(key);
      r.values.push_back(value.is_number()      ? value.get<double>()
                         : fallback.is_number() ? fallback.get<double>()
                                                : std::numeric_limits<double>::quiet_NaN());
    }
  } catch (const nlohmann::json::exception&) {
    fail(ErrorKind::input,
         fmt::format("{}: not the summary of a profile with ranking.{} and layers; give the summary.json of "
                     "profile_sparsity",
                     path.string(), key));
  }
  OCCAM_CHECK(int64_t(r.values.size()) == depth, ErrorKind::input,
              "{}: the profile is of a model with {} layers, the teacher has {}", path.string(),
              r.values.size(), depth);
  std::set<int64_t> seen;
  for (int64_t layer : r.order)
    OCCAM_CHECK(layer >= 0 && layer < depth && seen.insert(layer).second, ErrorKind::input,
                "{}: ranking.{} names layer {} twice or out of range", path.string(), key, layer);
  return r;
}

namespace {

std::vector<int64_t> blocks_of(const BlockChoice& choice, const LayerRanking& ranking, int64_t depth,
                               uint64_t seed) {
  auto take = [&](std::vector<int64_t> from, int64_t count) {
    OCCAM_CHECK(count <= int64_t(from.size()), ErrorKind::usage,
                "distill.runs: {} blocks are asked for, {} can be chosen from", choice.str(), from.size());
    from.resize(size_t(count));
    return from;
  };
  std::vector<int64_t> all(static_cast<size_t>(depth)), result;
  std::iota(all.begin(), all.end(), int64_t(0));
  if (choice.list) {
    result = *choice.list;
    for (int64_t b : result)
      OCCAM_CHECK(b < depth, ErrorKind::usage, "distill.runs: block {}; the teacher's go from 0 to {}", b,
                  depth - 1);
    OCCAM_CHECK(!result.empty(), ErrorKind::usage,
                "distill.runs: blocks is an empty list; no_op in controls keeps all attention");
  } else if (choice.sparsest) {
    result = take(ranking.order, *choice.sparsest);
  } else if (choice.densest) {
    result = take({ranking.order.rbegin(), ranking.order.rend()}, *choice.densest);
  } else if (choice.first) {
    result = take(all, *choice.first);
  } else if (choice.last) {
    result = take({all.rbegin(), all.rend()}, *choice.last);
  } else {
    Rng rng(seed, "distill.random");
    for (int64_t i = depth - 1; i > 0; --i) std::swap(all[size_t(i)], all[size_t(rng.below(i + 1))]);
    result = take(all, choice.random.value_or(0));
  }
  std::sort(result.begin(), result.end());
  OCCAM_CHECK(std::adjacent_find(result.begin(), result.end()) == result.end(), ErrorKind::usage,
              "distill.runs: a block is listed twice");
  return result;
}

double mean_sparsity(const std::vector<int64_t>& blocks, const LayerRanking& ranking) {
  double sum = 0;
  for (int64_t b : blocks) sum += ranking.values.at(size_t(b));
  return sum / double(blocks.size());
}

}  // namespace

std::vector<DistillRun> plan_runs(const DistillConfig& config, const LayerRanking& ranking,
                                  const VitShape& shape, uint64_t seed) {
  OCCAM_CHECK(
      !config.runs.empty() || !config.controls.empty(), ErrorKind::usage,
      "distill.runs is empty: name what to try, as runs: [{{blocks: {{sparsest: 2}}, with: bilstm}}]");
  std::vector<DistillRun> runs;
  auto add = [&](std::string asked, std::vector<int64_t> blocks, MixerChoice mixer) {
    for (const DistillRun& r : runs)
      if (r.blocks == blocks && r.mixer == mixer) return;
    DistillRun run{.asked = std::move(asked), .blocks = std::move(blocks), .mixer = std::move(mixer)};
    run.mean_sparsity = mean_sparsity(run.blocks, ranking);
    run.name = run.mixer.with;
    for (int64_t b : run.blocks) run.name += fmt::format("-{}", b);
    auto taken = [&](const std::string& name) {
      return std::any_of(runs.begin(), runs.end(), [&](const DistillRun& r) { return r.name == name; });
    };
    std::string base = run.name;
    for (int n = 2; taken(run.name); ++n) run.name = fmt::format("{}-variant{}", base, n);
    runs.push_back(std::move(run));
  };
  for (const RunConfig& r : config.runs) {
    if (r.with == kNoOp) {
      add("none", {}, {.with = kNoOp});
      continue;
    }
    make_mixer(r.with, shape.mixer(), r.options);  // throws for what does not exist
    r.blocks.check();
    add(r.blocks.str(), blocks_of(r.blocks, ranking, shape.depth, seed), {r.with, r.options});
  }
  for (const std::string& control : config.controls) {
    if (control == kNoOp) {
      add("none", {}, {.with = kNoOp});
      continue;
    }
    for (size_t i = 0, count = runs.size(); i < count; ++i)
      if (!runs[i].no_op()) add(runs[i].asked, runs[i].blocks, {.with = control});
  }
  return runs;
}

}  // namespace occam
