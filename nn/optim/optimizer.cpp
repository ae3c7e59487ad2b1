#include "nn/optim/optimizer.h"

#include <cmath>

#include "autograd/node.h"
#include "core/check.h"

namespace occam {

bool has_weight_decay(const std::string& name, const Shape& shape) {
  if (shape.rank() <= 1) return false;
  for (const char* token : {"cls_token", "dist_token", "pos_embed"})
    if (name.ends_with(token)) return false;
  // The two bias vectors of an LSTM are stored as [2, h, 4w].
  return name.find("bias") == std::string::npos;
}

Optimizer::Optimizer(Module& model, const OptimConfig& config) : config_(config), scalars_(model.device()) {
  for (auto& [name, parameter] : model.named_parameters()) {
    if (!parameter->trainable()) continue;
    Entry e{name, parameter, zeros_like(parameter->master()), Tensor(),
            has_weight_decay(name, parameter->shape()) ? config.weight_decay : 0};
    if (config.name == "adamw") e.second = zeros_like(parameter->master());
    entries_.push_back(std::move(e));
  }
  OCCAM_CHECK(!entries_.empty(), ErrorKind::usage, "nothing to optimise: every parameter is frozen");
}

void Optimizer::step() {
  std::vector<UpdateSlot> slots;
  std::vector<Parameter*> shadowed;
  for (Entry& e : entries_) {
    Tensor grad = e.parameter->grad();
    if (!grad) continue;
    const Tensor shadow = e.parameter->shadow();
    slots.push_back({detach(e.parameter->master()), raw::contiguous(grad), e.first, e.second,
                     shadow ? detach(shadow) : Tensor(), e.weight_decay});
    if (shadow) shadowed.push_back(e.parameter);
  }
  occam::gradient_norm(slots, scalars_, table_);
  if (config_.name == "adamw")
    adamw_update(slots, scalars_, {config_.beta1, config_.beta2, config_.eps}, config_.clip, table_);
  else
    sgd_update(slots, scalars_, config_.momentum, config_.clip, table_);
  for (Parameter* p : shadowed) p->shadow_is_current();
}

void Optimizer::zero_grad() {
  for (Entry& e : entries_) e.parameter->zero_grad();
}

double Optimizer::gradient_norm() const { return scalars_.values.to_vector<double>()[2]; }
bool Optimizer::last_step_finite() const { return scalars_.values.to_vector<double>()[3] == 0; }

NamedTensors Optimizer::state() const {
  NamedTensors state{{"scalars", scalars_.values}};
  for (const Entry& e : entries_) {
    state.emplace_back(e.name + ".first", e.first);
    if (e.second) state.emplace_back(e.name + ".second", e.second);
  }
  return state;
}

void Optimizer::load_state(const Safetensors& file) {
  std::string problems;
  NamedTensors own = state();
  for (const auto& [name, tensor] : own) {
    if (!file.contains(name))
      problems += "\n  missing: " + name;
    else if (!(file.get(name).shape() == tensor.shape()))
      problems +=
          fmt::format("\n  {} is {}, expected {}", name, file.get(name).shape().str(), tensor.shape().str());
  }
  OCCAM_CHECK(problems.empty(), ErrorKind::input, "{}: optimiser state of another model or configuration{}",
              file.path().string(), problems);
  for (auto& [name, tensor] : own) Tensor(tensor).copy_(file.get(name));
}

}  // namespace occam
