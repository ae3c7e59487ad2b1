#pragma once
// Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) on a whole batch, with timm's procedure:
// image i is mixed with image b-1-i by one lambda for the batch.
#include <cstdint>

#include "core/rng.h"

namespace occam {

struct MixOptions {
  double mixup = 0;          // alpha of Beta(alpha, alpha); 0 = no mixup
  double cutmix = 0;         // alpha; 0 = no cutmix
  double probability = 1;    // of mixing a batch at all
  double switch_prob = 0.5;  // of cutmix where both are on
  bool active() const { return (mixup > 0 || cutmix > 0) && probability > 0; }
};

/// What happens to one batch. lambda is the share of the image's own label: for cutmix it is corrected to the
/// uncovered area. lambda 1 = nothing.
struct MixPlan {
  double lambda = 1;
  bool cutmix = false;
  int64_t top = 0, bottom = 0, left = 0,
          right = 0;  // rows and columns [top, bottom) x [left, right), for cutmix
};

MixPlan draw_mix(const MixOptions& options, int64_t height, int64_t width, Rng& rng);
/// Mixes f32 [b, c, h, w] in place.
void mix_images(float* images, int64_t b, int64_t c, int64_t h, int64_t w, const MixPlan& plan);
/// Writes f32 [b, classes]: lambda on labels[i] plus 1 - lambda on labels[b-1-i]. Label smoothing is the
/// loss's: being linear, it gives the same on mixed targets as before mixing.
void mix_targets(const int64_t* labels, int64_t b, int64_t classes, const MixPlan& plan, float* targets);

/// Beta(a, b) by two gamma variates (Marsaglia and Tsang, ACM TOMS 26(3), 2000).
double draw_beta(double a, double b, Rng& rng);

}  // namespace occam
