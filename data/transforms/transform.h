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

/// What training draws for one picture.
struct Draw {
  Rect part;              // of base(): what is cut out; may reach outside, where pixels are 0
  bool flip = false;      // left and right
  Rect erase;             // of the result; empty = nothing is erased
  uint64_t noise_at = 0;  // Rng::position() before the keys of the erased rows
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

  // The same in parts, for who keeps pixels or works on them elsewhere (data/render).
  /// What depends on no draw: the evaluation cut, size x size; for CropMode::resized the picture. Grey where
  /// the result is; a grey picture stays grey.
  Image base(const Image& image) const;
  /// The draws for a base() of this size, in the order of apply().
  Draw draw(int64_t width, int64_t height, Rng& rng) const;
  /// The drawn part, size x size, neither mirrored nor erased.
  Image cut(Image base, const Draw& draw) const;
  /// Normalised value by channel and 8-bit level.
  const std::vector<std::array<float, 256>>& levels() const { return normalised_; }

 private:
  Image evaluation_pixels(const Image& image) const;
  Image drawn_pixels(Image base, const Draw& draw) const;
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
