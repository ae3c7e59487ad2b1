#include "nn/prof/memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "autograd/apply.h"
#include "autograd/saved_memory.h"

namespace occam {

namespace {

double mb(int64_t bytes) { return double(bytes) / 1e6; }

/// Counts what is saved each time a backward pass begins.
class SavedAtBackward final : public OpObserver {
 public:
  explicit SavedAtBackward(std::unordered_set<const Storage*> parameters)
      : parameters_(std::move(parameters)) {}
  void after(const OpEntry&, In, const Outs&, const Cost&) override {}
  void before_backward(std::span<const Tensor> outputs) override {
    most_ = std::max(most_, saved_bytes(outputs, parameters_));
  }
  int64_t most() const { return most_; }

 private:
  std::unordered_set<const Storage*> parameters_;
  int64_t most_ = 0;
};

}  // namespace

int64_t optimizer_bytes(const Module& model, const OptimConfig& config, bool average) {
  int64_t bytes = 0;
  for (const auto& [name, p] : model.named_parameters()) {
    const int64_t size = p->numel() * int64_t(sizeof(float));
    if (p->trainable()) bytes += size * (config.name == "adamw" ? 2 : 1);
    if (average) bytes += size;
  }
  return bytes;
}

MemoryReport measure_memory(Module& model, int64_t state, const std::function<void()>& step) {
  MemoryReport report;
  report.state = state;
  std::unordered_set<const Storage*> parameters;
  for (auto& [name, p] : model.named_parameters()) {
    if (p->trainable()) report.gradients += p->numel() * int64_t(sizeof(float));
    for (const Tensor* t : {&p->master(), &p->value()}) {
      const Storage* storage = t->impl().storage.get();
      if (parameters.insert(storage).second) report.parameters += int64_t(storage->bytes());
    }
  }
  SavedAtBackward saved(std::move(parameters));
  MemoryWatch watch(model.device());
  step();
  report.saved = saved.most();
  report.at_peak = watch.peak(true);
  report.peak = report.at_peak.bytes;
  return report;
}

std::string MemoryReport::summary() const {
  return fmt::format(
      "peak {:.1f} MB; least possible {:.1f} MB ({:.2f} times): parameters {:.1f}, optimiser {:.1f}, saved "
      "for "
      "backward {:.1f}, gradients {:.1f} (once those are there, what was saved is not)",
      mb(peak), mb(lower_bound()), double(peak) / double(std::max<int64_t>(lower_bound(), 1)), mb(parameters),
      mb(state), mb(saved), mb(gradients));
}

Table MemoryReport::largest(size_t count) const {
  Table table{.columns = {"op", "where", "tensors", "MB", "share"}};
  auto add = [&](const std::string& op, const std::string& where, Cell tensors, int64_t bytes) {
    table.add({op, where, std::move(tensors), Cell(mb(bytes), 1),
               Cell::percent(double(bytes) / double(std::max<int64_t>(peak, 1)))});
  };
  add("", "there before the step (parameters, optimiser, data)", Cell::missing(), at_peak.before);
  int64_t rest = 0, rest_count = 0;
  for (size_t i = 0; i < at_peak.pieces.size(); ++i) {
    const MemoryWatch::Piece& p = at_peak.pieces[i];
    if (i < count)
      add(p.op, p.path, p.count, p.bytes);
    else
      rest += p.bytes, rest_count += p.count;
  }
  if (rest_count > 0) add("", "smaller ones", rest_count, rest);
  return table;
}

}  // namespace occam
