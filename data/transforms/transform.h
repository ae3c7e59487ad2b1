#pragma once
// From an 8-bit picture to the network's normalised f32 planes.
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/rng.h"
#include "data/image/image.h"
#include "data/image/resize.h"

namespace occam {

/// How a training picture is cut. `centre` is the evaluation cut; `pad` shifts that by up to `padding` pixels
/// each way, zeros coming in (He et al., CVPR 2016, section 4.2); `resized` is Inception's random area and
/// aspect ratio (Szegedy et al., CVPR 2015), with torchvision's procedure.
enum class CropMode : uint8_t { centre, pad, resized };

struct Augment {
  CropMode crop = CropMode::centre;
  int64_t padding = 4;                       // pixels, for `pad`
  double scale_min = 0.08, scale_max = 1.0;  // share of the picture's area, for `resized`
  double flip = 0;                           // probability of mirroring left and right
  /// Probability of replacing a rectangle by standard normal noise after normalisation (Zhong et al., "Random
  /// Erasing Data Augmentation", AAAI 2020; timm's mode "pixel": 2 % to 1/3 of the area, aspect 0.3 to
  /// 1/0.3).
  double erase = 0;
};

struct TransformOptions {
  int64_t size = 224;  // side of the result
  int64_t channels = 3;
  /// Without a filter the picture is not resized for evaluation: it is cut at the centre, or padded with
  /// zeros.
  std::optional<Filter> filter = Filter::bicubic;
  double crop_pct = 0.9;         // the shorter side becomes floor(size / crop_pct) before the central cut
  std::vector<float> mean, std;  // of values in [0, 1]; one a channel
  Augment augment;
};

class Transform {
 public:
  /// Throws Error{usage} on an option out of range.
  explicit Transform(TransformOptions options);
  const TransformOptions& options() const { return options_; }
  /// Floats that apply() writes: channels * size * size.
  int64_t numel() const { return options_.channels * options_.size * options_.size; }
  /// Cut, resized and mirrored 8-bit pixels, size x size, before normalisation.
  Image pixels(const Image& image, Rng& rng) const;
  /// (value / 255 - mean) / std of pixels(), then erasing, into f32 [c, size, size]. Without augmentation
  /// nothing is drawn from `rng`.
  void apply(const Image& image, Rng& rng, float* out) const;

 private:
  Image evaluation_pixels(const Image& image) const;
  Image training_pixels(const Image& image, Rng& rng) const;
  TransformOptions options_;
  std::vector<std::array<float, 256>> normalised_;  // by channel and pixel value
};

/// Size after Resize(short_side) as torchvision computes it: the shorter side becomes `short_side`, the
/// longer one is truncated. Returned as a Rect at the origin.
Rect resized_size(int64_t width, int64_t height, int64_t short_side);
/// Where a side x side cut lies in torchvision's CenterCrop: halves round to even; negative where it pads.
Rect centre_rect(int64_t width, int64_t height, int64_t side);
/// torchvision's RandomResizedCrop.get_params with ratio 3/4 to 4/3.
Rect random_resized_rect(int64_t width, int64_t height, double scale_min, double scale_max, Rng& rng);

}  // namespace occam
