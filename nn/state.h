#pragma once
// A module's values by dotted name: taking them out, putting them in, files.
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/io/safetensors.h"
#include "nn/module.h"

namespace occam {

/// Masters (aliases without gradient) by dotted name, in order of declaration.
NamedTensors state_dict(const Module& module);

/// Renames or reshapes what a dictionary holds before it is matched with a module's names.
using Remap = std::function<NamedTensors(const NamedTensors&)>;

struct LoadOptions {
  bool strict = true;  // false: load what fits and report the rest
  Remap remap;
  std::string source = "the dictionary";  // the file, for messages
};

/// What did not fit.
struct LoadReport {
  std::vector<std::string> missing;     // parameters without a tensor
  std::vector<std::string> unexpected;  // tensors without a parameter
  std::vector<std::string> mis_shaped;  // "name: the file has [a], the model has [b]"
  bool complete() const { return missing.empty() && unexpected.empty() && mis_shaped.empty(); }
  std::string str() const;
};

/// Copies values by name. Nothing is changed when strict loading fails: it throws one Error{input} that names
/// the source and every missing, unexpected and mis-shaped name.
LoadReport load_state_dict(Module& module, const NamedTensors& dict, const LoadOptions& options = {});

/// All tensors of a safetensors file (borrowing the mapped file).
NamedTensors tensors_of(const Safetensors& file);

/// Splits Hugging Face's ViTForImageClassification and DeiTForImageClassification(WithTeacher) names into
/// timm's, joining query, key and value. Names that it does not know are kept, so strict loading reports
/// them.
NamedTensors remap_huggingface_vit(const NamedTensors& dict);
/// Do the names look like Hugging Face's ViT or DeiT?
bool looks_like_huggingface_vit(const NamedTensors& dict);

}  // namespace occam
