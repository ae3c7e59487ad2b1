#include "apps/inspect/convert.h"

#include <fmt/format.h>

#include <filesystem>
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

void check_files(const ConvertConfig& config, const CommonConfig::Out& out) {
  namespace fs = std::filesystem;
  OCCAM_CHECK(!config.file.empty() && !config.to.empty(), ErrorKind::usage,
              "convert needs convert.file, what is read, and convert.to, what is written");
  OCCAM_CHECK(out.dir.empty(), ErrorKind::usage, "convert writes convert.to alone; it takes no out.dir");
  const fs::path to = config.to, folder = to.has_parent_path() ? to.parent_path() : ".";
  std::error_code error;  // what cannot be looked at fails when it is opened
  OCCAM_CHECK(fs::is_directory(folder, error), ErrorKind::usage, "convert.to: {}: no such folder",
              folder.string());
  OCCAM_CHECK(!fs::is_directory(to, error), ErrorKind::usage, "convert.to: {} is a folder", config.to);
  if (!fs::exists(to, error)) return;
  OCCAM_CHECK(!fs::equivalent(to, config.file, error), ErrorKind::usage,
              "convert.to is convert.file, {}, which is kept", config.file);
  OCCAM_CHECK(out.overwrite, ErrorKind::usage,
              "convert.to: {} is there already; out.overwrite=true replaces it", config.to);
}

}  // namespace

void convert_wide_lstm(App& app, const ModelConfig& model_config, const ConvertConfig& config,
                       const CommonConfig::Out& out) {
  check_files(config, out);
  const Safetensors file(config.file);
  NamedTensors tensors;
  for (auto& [name, tensor] : tensors_of(file)) tensors.emplace_back(renamed(name, config.rename), tensor);
  OCCAM_CHECK(!wide_lstms(tensors).empty(), ErrorKind::input,
              "{}: no LSTM of PyTorch's names (weight_ih_l0 ...) is in it, so there is nothing to convert",
              config.file);
  const std::unique_ptr<VisionTransformer> model = make_model(model_config);
  load_state_dict(*model, blocks_of_wide_lstm(tensors, model->shape().heads), {.source = config.file});
  app.checked();
  save_model(config.to, *model);
  app.print(fmt::format("{}: {} parameters from {}\n", config.to, model->parameter_count(), config.file));
  app.finish({{"file", config.to}, {"params", model->parameter_count()}});
}

}  // namespace occam
