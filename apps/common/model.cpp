#include "apps/common/model.h"

#include <fmt/format.h>

#include <cstdio>

#include "ops/blas.h"

namespace occam {

void warn(const std::string& text) { std::fprintf(stderr, "warning: %s\n", text.c_str()); }

void add_skipped(const Loader& loader, std::set<std::string>& reasons) {
  for (const auto& [index, reason] : loader.skipped()) reasons.insert(reason);
}

void warn_skipped(const std::set<std::string>& reasons) {
  if (reasons.empty()) return;
  warn(fmt::format("{} unreadable image(s) left out (data.on_error=skip); {}{}", reasons.size(),
                   reasons.size() > 1 ? "the first: " : "", *reasons.begin()));
}

DType compute_dtype_of(const std::string& precision) {
  set_tf32(precision == "tf32");
  return precision == "bf16" ? DType::bf16 : DType::f32;
}

std::unique_ptr<VisionTransformer> open_model(App& app, const ModelConfig& config, DataConfig& data,
                                              const std::string& precision, uint64_t seed, int64_t classes) {
  ModelConfig complete = config;
  if (!complete.classes && classes > 0 && (complete.checkpoint.empty() || complete.new_head))
    complete.classes = classes;
  std::unique_ptr<VisionTransformer> model = make_model(complete, seed);
  if (complete.checkpoint.empty()) warn("model.checkpoint is not set: the weights are random");
  data = resolve(data, {model->model_name() == kFreeFormName ? "" : model->model_name(),
                        model->shape().image_size, model->shape().channels});
  model->to(app.device());
  model->set_compute_dtype(compute_dtype_of(precision));
  return model;
}

}  // namespace occam
