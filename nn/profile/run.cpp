#include "nn/profile/run.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/grad_mode.h"
#include "core/stream.h"
#include "nn/capture.h"
#include "nn/mixers/attention/attention.h"
#include "nn/train/throughput.h"
#include "ops/attention_stats/op.h"
#include "ops/elementwise/op.h"
#include "ops/reduce/op.h"

namespace occam {

namespace {

/// Attention mixers by layer, null elsewhere; forgets its listeners when it goes.
class Listeners {
 public:
  explicit Listeners(VisionTransformer& model) {
    for (int64_t i = 0; i < model.shape().depth; ++i)
      mixers_.push_back(dynamic_cast<Attention*>(&model.block(i).mixer()));
  }
  ~Listeners() {
    for (Attention* a : mixers_)
      if (a) a->on_qkv({});
  }
  const std::vector<Attention*>& mixers() const { return mixers_; }

 private:
  std::vector<Attention*> mixers_;
};

/// softmax(q_0 k^T / sqrt(d)) of one image, mean over heads, without the prefix tokens; on the host.
std::vector<float> cls_row(const Tensor& qkv, int64_t image, int64_t prefix) {
  Tensor one = raw::select(qkv, 0, image);  // [t, 3, h, d]
  int64_t t = one.size(0), heads = one.size(2), d = one.size(3);
  std::vector<float> v = one.to_vector<float>();
  auto at = [&](int64_t token, int64_t part, int64_t head) {
    return v.data() + ((token * 3 + part) * heads + head) * d;
  };
  std::vector<float> mean(size_t(t - prefix), 0.0f);
  std::vector<double> row(size_t(t), 0.0);
  for (int64_t h = 0; h < heads; ++h) {
    double largest = -INFINITY, sum = 0;
    for (int64_t j = 0; j < t; ++j) {
      double dot = 0;
      for (int64_t k = 0; k < d; ++k) dot += double(at(0, 0, h)[k]) * at(j, 1, h)[k];
      row[size_t(j)] = dot / std::sqrt(double(d));
      largest = std::max(largest, row[size_t(j)]);
    }
    for (double& r : row) sum += r = std::exp(r - largest);
    for (int64_t j = prefix; j < t; ++j)
      mean[size_t(j - prefix)] += float(row[size_t(j)] / sum / double(heads));
  }
  return mean;
}

/// `moments` [2,h,t,t] summed over `images`; empty when the layer has none.
std::vector<HeadMap> maps_of(const Tensor& moments, int64_t images) {
  std::vector<HeadMap> maps;
  if (!moments) return maps;
  Tensor on_host = raw::to(moments, kCPU);
  std::vector<double> dependence = data_dependence(on_host, images);
  Tensor sums = raw::select(on_host, 0, 0);
  for (int64_t h = 0; h < sums.size(0); ++h) {
    maps.push_back({mul_scalar(raw::select(sums, 0, h), 1 / double(images)), dependence[size_t(h)]});
  }
  return maps;
}

/// What a batch leaves on the device until it is read.
struct Measured {
  std::vector<int64_t> layers;
  Tensor stats;   // f32 [layers, b, h, 3, K]
  Tensor finite;  // f32 []: 0 when every logit is finite, else NaN
  int64_t images = 0, first_index = 0;
};

Measured gather(const std::vector<Tensor>& stats, const Tensor& logits, const Batch& batch) {
  Measured m{.images = batch.size(), .first_index = batch.indices.at(0)};
  for (size_t i = 0; i < stats.size(); ++i)
    if (stats[i]) m.layers.push_back(int64_t(i));
  const Tensor& any = stats[size_t(m.layers.at(0))];
  m.stats =
      empty({int64_t(m.layers.size()), any.size(0), any.size(1), any.size(2), any.size(3)}, options_of(any));
  for (size_t k = 0; k < m.layers.size(); ++k)
    raw::select(m.stats, 0, int64_t(k)).copy_(stats[size_t(m.layers[k])]);
  m.finite = sum(mul_scalar(logits, 0));  // 0 times infinity is NaN
  return m;
}

/// On another stream, which has waited for the batch: the device may be at the next one meanwhile.
void read(const Measured& m, SparsityProfile& profile) {
  std::optional<StreamGuard> guard;
  if (m.stats.is_cuda()) guard.emplace(stream_of(m.stats.device(), StreamRole::comm));
  Tensor on_host = raw::to(m.stats, kCPU);
  // A metric may be undefined (NaN) by itself; a NaN from the weights reaches the output too.
  OCCAM_CHECK(std::isfinite(m.finite.item()), ErrorKind::non_finite,
              "the model's output is not finite for an image of the batch that begins with image {}\n  fix   "
              "    use other weights, or precision=f32",
              m.first_index);
  for (size_t k = 0; k < m.layers.size(); ++k) profile.add(m.layers[k], raw::select(on_host, 0, int64_t(k)));
}

}  // namespace

ProfileResult profile_model(VisionTransformer& model, Loader& loader, const ProfileOptions& options) {
  const VitShape& shape = model.shape();
  Listeners listeners(model);
  OCCAM_CHECK(std::any_of(listeners.mixers().begin(), listeners.mixers().end(),
                          [](Attention* a) { return a != nullptr; }),
              ErrorKind::usage, "profile: no layer of {} has attention", model.model_name());
  int64_t grid = shape.image_size / shape.patch, prefix = shape.distilled ? 2 : 1;
  AttentionStatsOptions stats_options;
  stats_options.prefix_tokens = prefix;
  stats_options.grid_h = stats_options.grid_w = grid;
  stats_options.order_metrics = options.order_metrics;

  ProfileResult result{.profile = SparsityProfile(shape.depth)};
  result.tokens = prefix + grid * grid;
  std::vector<Tensor> stats(size_t(shape.depth));
  std::vector<Tensor> moments(size_t(shape.depth));
  std::optional<Batch> batch;
  int64_t images = 0, begun = 0;  // read; given to the model
  for (size_t i = 0; i < stats.size(); ++i) {
    if (listeners.mixers()[i] == nullptr) continue;
    listeners.mixers()[i]->on_qkv([&, i](const Tensor& qkv) {
      stats[i] = attention_stats(qkv, stats_options);
      if (options.maps) {
        Tensor of_batch = attention_map_moments(qkv);
        if (moments[i]) {
          moments[i].add_(of_batch);
        } else {
          moments[i] = of_batch;
        }
      }
      for (int64_t k = 0; k < batch->size() && begun + k < options.gallery; ++k)
        result.gallery.at(size_t(begun + k)).layers[i] = cls_row(qkv, k, prefix);
    });
  }

  NoGrad no_grad;
  bool training = model.training();
  model.eval();
  Throughput throughput;
  CapturedForward forward(model);  // the listeners' work is part of it
  std::optional<Measured> behind;
  auto read_behind = [&] {
    read(*behind, result.profile);
    images += behind->images;
    behind.reset();
    throughput.update(images);
    if (options.progress) options.progress(images);
  };
  while (!(options.stop && options.stop()) && (batch = loader.next())) {
    for (int64_t k = 0; k < batch->size() && begun + k < options.gallery; ++k)
      result.gallery.push_back(
          {batch->indices[size_t(k)], std::vector<std::vector<float>>(size_t(shape.depth))});
    // What the gallery keeps is read on the host in the middle of the model.
    Tensor logits = begun < options.gallery ? model(raw::to(batch->images, model.compute_dtype()))
                                            : forward(batch->images);
    Measured measured = gather(stats, logits, *batch);
    begun += batch->size();
    if (behind) read_behind();  // the batch before, while a GPU works on this one
    behind = std::move(measured);
    const Device device = behind->stats.device();
    if (device.is_cuda())
      stream_wait(stream_of(device, StreamRole::comm), current_stream(device));
    else
      read_behind();
  }
  if (behind) read_behind();
  model.train(training);
  OCCAM_CHECK(images > 0 || (options.stop && options.stop()), ErrorKind::input,
              "no image could be profiled: {}",
              loader.skipped().empty() ? "there is none" : loader.skipped().begin()->second);
  result.images_per_s = throughput.images_per_s();
  if (options.maps && images > 0)
    for (const Tensor& m : moments) result.maps.push_back(maps_of(m, images));
  return result;
}

}  // namespace occam
