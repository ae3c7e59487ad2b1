#include "nn/ema/ema.h"

#include "autograd/node.h"
#include "core/check.h"
#include "core/grad_mode.h"

namespace occam {

Ema::Ema(Module& model, double decay) : model_(model), decay_(decay) {
  for (const auto& [name, parameter] : model.named_parameters())
    averages_.emplace_back(name, raw::clone(detach(parameter->master())));
}

void Ema::update() {
  std::vector<Tensor> averages, values;
  size_t i = 0;
  for (const auto& [name, parameter] : model_.named_parameters()) {
    averages.push_back(averages_[i++].second);
    values.push_back(detach(parameter->master()));
  }
  ema_update(averages, values, decay_, table_);
}

void Ema::swap() {
  NoGrad no_grad;
  size_t i = 0;
  for (const auto& [name, parameter] : model_.named_parameters()) {
    Tensor value = detach(parameter->master()), kept = raw::clone(value);
    value.copy_(averages_[i].second);
    averages_[i++].second.copy_(kept);
  }
}

NamedTensors Ema::state() const { return averages_; }

void Ema::load_state(const Safetensors& file) {
  for (auto& [name, average] : averages_) {
    const Tensor& stored = file.get(name);
    OCCAM_CHECK(stored.shape() == average.shape(), ErrorKind::input, "{}: {} is {}, the model has {}",
                file.path().string(), name, stored.shape().str(), average.shape().str());
    average.copy_(stored);
  }
}

}  // namespace occam
