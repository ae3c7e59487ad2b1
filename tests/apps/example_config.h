#pragma once
// A config with one of everything, as the apps' own would be written.
#include <map>
#include <optional>

#include "core/check.h"
#include "core/config.h"

namespace occam {

struct ExampleStage {
  int64_t steps = 10;
  double lr = 1e-3;
  std::optional<double> clip;
  template <class V>
  void visit(V& v) {
    v("steps", steps, "updates", Range::at_least(1));
    v("lr", lr, "learning rate", Range::above(0));
    v("clip", clip, "largest gradient norm", Range::above(0));
  }
};

struct ExampleBlocks {
  std::vector<int64_t> list;
  std::optional<int64_t> sparsest;
  template <class V>
  void visit(V& v) {
    v("list", list, "block numbers", Range::at_least(0), Shorthand{});
    v("sparsest", sparsest, "so many of the sparsest", Range::at_least(1));
  }
  void check() const {
    OCCAM_CHECK(list.empty() || !sparsest, ErrorKind::usage, "give either a list or 'sparsest'");
  }
};

struct ExampleReplace {
  ExampleBlocks blocks;
  std::string with = "bilstm";
  std::map<std::string, double> options;
  template <class V>
  void visit(V& v) {
    v("blocks", blocks, "which blocks");
    v("with", with, "mixer", Choices{"bilstm", "identity", "attention"});
    v("options", options, "the mixer's options");
  }
};

struct ExampleModel {
  std::string name = "deit_tiny";
  std::string checkpoint;
  std::vector<ExampleReplace> replace;
  template <class V>
  void visit(V& v) {
    v("name", name, "model", Shorthand{});
    v("checkpoint", checkpoint, "weights to load");
    v("replace", replace, "mixers in place of attention");
  }
};

struct ExampleConfig {
  ExampleModel model;
  ExampleStage stage;
  std::vector<std::string> keys{"entropy", "gini"};
  std::vector<float> mean{0.485f, 0.456f, 0.406f};
  std::vector<bool> flags;
  uint64_t seed = 0;
  int workers = 2;
  bool shuffle = true;
  template <class V>
  void visit(V& v) {
    v("model", model, "the network");
    v("stage", stage, "how to train");
    v("keys", keys, "measures", Choices{"entropy", "gini", "hoyer"});
    v("mean", mean, "channel means", Range{0, 1});
    v("flags", flags, "switches");
    v("seed", seed, "random seed");
    v("workers", workers, "loader threads", Range{0, 64});
    v("shuffle", shuffle, "new order each epoch");
  }
};

}  // namespace occam
