#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"
#include "core/rng.h"
#include "data/sets/sets.h"

namespace occam {

namespace {

class SyntheticSet : public Dataset {
 public:
  explicit SyntheticSet(const SyntheticOptions& options) : options_(options) {
    OCCAM_CHECK(options.images >= 1 && options.classes >= 1 && options.size >= 1 && options.size <= 4096,
                ErrorKind::usage,
                "synthetic data set of {} images, {} classes, size {}: each must be at least 1",
                options.images, options.classes, options.size);
    OCCAM_CHECK(options.channels == 1 || options.channels == 3, ErrorKind::usage,
                "synthetic data set with {} channels; 1 or 3", options.channels);
    for (int64_t k = 0; k < options.classes; ++k) names_.push_back("class " + std::to_string(k));
  }
  int64_t size() const override { return options_.images; }
  const std::vector<std::string>& class_names() const override { return names_; }
  int64_t channels() const override { return options_.channels; }
  Rect common_size() const override { return {0, 0, options_.size, options_.size}; }
  int64_t label(int64_t index) const override { return index % options_.classes; }
  Sample get(int64_t index) const override;
  std::string path(int64_t index) const override {
    return "synthetic " + options_.split + "[" + std::to_string(index) + "]";
  }

 private:
  SyntheticOptions options_;
  std::vector<std::string> names_;
};

/// cos and sin of k * 2 pi * position / size for position in [0, size).
struct Wave {
  std::vector<float> cosine, sine;
  Wave(int64_t size, int64_t k) : cosine(size_t(size)), sine(size_t(size)) {
    for (int64_t i = 0; i < size; ++i) {
      double angle = 2 * std::numbers::pi * double(k * i) / double(size);
      cosine[size_t(i)] = float(std::cos(angle));
      sine[size_t(i)] = float(std::sin(angle));
    }
  }
};

Sample SyntheticSet::get(int64_t index) const {
  OCCAM_ASSERT(index >= 0 && index < size());
  constexpr int64_t kFrequencies = 4;  // 0 to 3 periods in each direction
  int64_t s = options_.size, channels = options_.channels;
  Sample sample{Image(s, s, channels), label(index)};
  Rng pattern(options_.seed, "synthetic.pattern", uint64_t(sample.label));
  Rng noise(hash_name(options_.seed, "synthetic." + options_.split), uint64_t(index));

  std::vector<float> value(size_t(s * s * channels), 0.0f);
  for (int64_t fy = 0; fy < kFrequencies; ++fy)
    for (int64_t fx = 0; fx < kFrequencies; ++fx) {
      Wave across(s, fx), down(s, fy);
      for (int64_t c = 0; c < channels; ++c) {
        double phase = pattern.uniform(0, 2 * std::numbers::pi), height = pattern.uniform(0, 12);
        auto a = float(height * std::cos(phase)), b = float(height * std::sin(phase));
        for (int64_t y = 0; y < s; ++y)
          for (int64_t x = 0; x < s; ++x) {
            float cy = down.cosine[size_t(y)], sy = down.sine[size_t(y)];
            float cx = across.cosine[size_t(x)], sx = across.sine[size_t(x)];
            value[size_t((y * s + x) * channels + c)] += a * (cx * cy - sx * sy) - b * (sx * cy + cx * sy);
          }
      }
    }
  double contrast = noise.uniform(0.7, 1.3), brightness = noise.uniform(-15, 15);
  for (size_t i = 0; i < value.size(); ++i) {
    double v = 128 + brightness + contrast * value[i] + noise.uniform(-40, 40);
    sample.image.data()[i] = uint8_t(std::clamp(std::lround(v), 0l, 255l));
  }
  return sample;
}

}  // namespace

DatasetPtr open_synthetic(const SyntheticOptions& options) { return std::make_shared<SyntheticSet>(options); }

}  // namespace occam
