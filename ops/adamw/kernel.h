#pragma once
#include <cstdint>

#include "core/half.h"
#include "ops/adamw/update.h"

namespace occam::kernels {

/// A piece of one parameter, at most kUpdateChunk elements: what one block works on. Lists of them live on
/// the device.
struct UpdateChunk {
  float *param, *first, *second;
  const float* grad;
  bf16* shadow;
  int64_t count;
  float weight_decay;
};
inline constexpr int64_t kUpdateChunk = 8192;

/// scalars as in StepScalars. `partial` holds one float a chunk.
void gradient_norm(const UpdateChunk* chunks, int64_t count, float* partial, float* scalars, void* stream);
void adamw(const UpdateChunk* chunks, int64_t count, const float* scalars, const AdamWNumbers<float>& numbers,
           float clip, void* stream);
void sgd(const UpdateChunk* chunks, int64_t count, const float* scalars, float momentum, float clip,
         void* stream);
/// param = decay param + rest grad
void ema(const UpdateChunk* chunks, int64_t count, float decay, float rest, void* stream);

}  // namespace occam::kernels
