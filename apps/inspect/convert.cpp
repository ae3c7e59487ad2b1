#include "apps/inspect/convert.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/check.h"
#include "nn/mixers/bilstm/wide.h"
#include "nn/state.h"

namespace occam {

namespace {

/// Each part of a dotted name by itself.
std::string renamed(const std::string& name, const std::map<std::string, std::string>& names) {
  std::string out;
  for (size_t start = 0; start <= name.size();) {
    const size_t end = std::min(name.find('.', start), name.size());
    const std::string part = name.substr(start, end - start);
    const auto found = names.find(part);
    out += (out.empty() ? "" : ".") + (found == names.end() ? part : found->second);
    start = end + 1;
  }
  return out;
}

}  // namespace

void convert_wide_lstm(App& app, VisionTransformer& model, const ConvertConfig& config) {
  OCCAM_CHECK(!config.file.empty() && !config.to.empty(), ErrorKind::usage,
              "convert needs convert.file, what is read, and convert.to, what is written");
  const Safetensors file(config.file);
  NamedTensors tensors;
  for (auto& [name, tensor] : tensors_of(file)) tensors.emplace_back(renamed(name, config.rename), tensor);
  load_state_dict(model, blocks_of_wide_lstm(tensors, model.shape().heads), {.source = config.file});
  app.checked();
  save_model(config.to, model);
  app.print(fmt::format("{}: {} parameters from {}\n", config.to, model.parameter_count(), config.file));
  app.finish({{"file", config.to}, {"params", model.parameter_count()}});
}

}  // namespace occam
