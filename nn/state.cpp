#include "nn/state.h"

#include <fmt/ranges.h>

#include "autograd/node.h"
#include "core/check.h"

namespace occam {

namespace {

constexpr size_t kNamesShown = 20;

std::string list_of(const char* title, const std::vector<std::string>& names) {
  if (names.empty()) return "";
  std::string text = fmt::format("\n  {} ({})", title, names.size());
  for (size_t i = 0; i < names.size() && i < kNamesShown; ++i) text += "\n    " + names[i];
  if (names.size() > kNamesShown) text += fmt::format("\n    and {} more", names.size() - kNamesShown);
  return text;
}

}  // namespace

std::string LoadReport::str() const {
  return list_of("missing", missing) + list_of("unexpected", unexpected) +
         list_of("of another shape", mis_shaped);
}

NamedTensors state_dict(const Module& module) {
  NamedTensors dict;
  for (const auto& [name, p] : module.named_parameters()) dict.emplace_back(name, detach(p->master()));
  return dict;
}

LoadReport load_state_dict(Module& module, const NamedTensors& given, const LoadOptions& options) {
  const NamedTensors dict = options.remap ? options.remap(given) : given;
  std::map<std::string_view, const Tensor*> by_name;
  for (const auto& [name, tensor] : dict)
    OCCAM_CHECK(by_name.emplace(name, &tensor).second, ErrorKind::input, "{} holds {} twice", options.source,
                name);

  LoadReport report;
  std::vector<std::pair<Parameter*, const Tensor*>> fitting;
  for (auto& [name, p] : module.named_parameters()) {
    auto it = by_name.find(name);
    if (it == by_name.end()) {
      report.missing.push_back(name);
      continue;
    }
    const Tensor& tensor = *it->second;
    if (tensor.shape() != p->shape() || !is_floating(tensor.dtype()))
      report.mis_shaped.push_back(fmt::format("{}: {} {} there, {} in the model", name,
                                              name_of(tensor.dtype()), tensor.shape().str(),
                                              p->shape().str()));
    else
      fitting.emplace_back(p, &tensor);
    by_name.erase(it);
  }
  for (const auto& [name, tensor] : dict)
    if (by_name.contains(name)) report.unexpected.push_back(name);
  OCCAM_CHECK(
      !options.strict || report.complete(), ErrorKind::input,
      "{} does not fit the model{}\n  fix     check model.name and its sizes, or give the checkpoint of this "
      "model",
      options.source, report.str());
  for (auto& [p, tensor] : fitting) p->set_values(*tensor);
  return report;
}

NamedTensors tensors_of(const Safetensors& file) {
  NamedTensors dict;
  for (const SafetensorsEntry& e : file.entries()) dict.emplace_back(e.name, e.tensor);
  return dict;
}

}  // namespace occam
