#pragma once
// Runs a model over images and profiles the attention of every layer.
#include <functional>
#include <vector>

#include "data/loader.h"
#include "nn/profile/sparsity.h"
#include "nn/vit/vit.h"

namespace occam {

struct ProfileOptions {
  bool order_metrics = true;  // Gini, top-k mass, p-mass: they need a sort of every row
  bool maps = false;          // mean map and data dependence of every head
  int64_t gallery = 0;        // of the first images, keep the CLS attention of every layer
  std::function<void(int64_t images)> progress;
  std::function<bool()> stop;  // true ends the run early
};

/// Attention of the first token to the patches, mean over the heads, of one image in one layer.
struct GalleryImage {
  int64_t index = 0;                       // in the data set
  std::vector<std::vector<float>> layers;  // [layer][patch]; empty for a layer without attention
};

/// Mean attention map of a head over the images, and how much of the map depends on the image.
struct HeadMap {
  Tensor mean;                 // f32 [t, t] on the CPU
  double data_dependence = 0;  // see data_dependence() in ops/attention_stats
};

struct ProfileResult {
  SparsityProfile profile;
  std::vector<GalleryImage> gallery;
  std::vector<std::vector<HeadMap>> maps;  // [layer][head]; empty without ProfileOptions::maps
  int64_t tokens = 0;
  double images_per_s = 0;  // forward and statistics; see Throughput
};

/// Evaluation mode, no gradients. Layers whose mixer is not softmax attention stay empty. Throws Error{usage}
/// when no layer has attention.
ProfileResult profile_model(VisionTransformer& model, Loader& loader, const ProfileOptions& options = {});

}  // namespace occam
