#pragma once
// CUDA part of Renderer: plain types, sizes and a stream.
#include <cstdint>

#include "core/half.h"
#include "data/render/pixels.h"

namespace occam::kernels {

/// Images, labels and targets of a batch: see RenderArgs. `images` is [count, channels, size, size].
template <class T>
void render(const RenderArgs& args, T* images, void* stream);

/// Copies a batch's own pixels to their rows of the store. Rows are multiples of 16 bytes and so aligned.
void keep_fresh(const ImagePlan* images, int64_t count, const uint8_t* fresh, uint8_t* store,
                int64_t row_bytes, void* stream);

}  // namespace occam::kernels
