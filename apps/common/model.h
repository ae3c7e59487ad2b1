#pragma once
// What the apps share about models and data: opening them together, and precision.
#include <memory>
#include <set>
#include <string>

#include "apps/common/app.h"
#include "data/config.h"
#include "data/loader.h"
#include "nn/vit/model.h"

namespace occam {

/// Builds the model on the app's device in its precision and completes `data` from it (sizes, normalisation).
/// Warns on the standard error when there is no checkpoint: weights are random then. `classes` is what a new
/// model's head gets when config.classes is unset; 0 leaves it to the model.
std::unique_ptr<VisionTransformer> open_model(App& app, const ModelConfig& config, DataConfig& data,
                                              const std::string& precision, uint64_t seed,
                                              int64_t classes = 0);

/// bf16 for "bf16", else f32; switches TF32 on for "tf32" and off otherwise.
DType compute_dtype_of(const std::string& precision);

/// One warning line on the standard error.
void warn(const std::string& text);
/// Adds the images that the loader left out, each with its path and reason.
void add_skipped(const Loader& loader, std::set<std::string>& reasons);
/// Tells how many images data.on_error=skip left out, and the first reason. Silent when there are none.
void warn_skipped(const std::set<std::string>& reasons);

}  // namespace occam
