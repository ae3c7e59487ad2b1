#pragma once
// Rows of different lengths packed without padding, with everything but the capacity kept on the device, so
// that dropping tokens needs no host synchronisation.
#include "core/tensor.h"

namespace occam {

/// Sequence i holds rows offsets[i] .. offsets[i+1] of `data`. Rows from `count` to the capacity are
/// undefined; kernels launch for the capacity and stop at `count`.
struct Ragged {
  Tensor data;         // [capacity, c]
  Tensor offsets;      // i32 [b+1], ascending, offsets[0] = 0, offsets[b] = count
  Tensor token_index;  // i32 [capacity]: position of each row in its sequence before tokens were dropped
  Tensor count;        // i32 [1]: rows in use
  Tensor overflow;     // i32 [1]: not 0 when more rows were wanted than the capacity holds

  int64_t capacity() const { return data.size(0); }
  int64_t batch() const { return offsets.size(0) - 1; }
};

/// Packs the kept rows of a padded batch: data [b,t,c] and a keep mask [b,t] (u8 or bool), both on the CPU.
/// `capacity` below the number of kept rows sets `overflow` and drops the rest.
Ragged make_ragged(const Tensor& data, const Tensor& keep, int64_t capacity);

/// Shapes, dtypes and devices; throws Error{shape} naming the part. Host work only.
void check_structure(const Ragged& r);
/// Also the contents: ascending offsets, count, token indices ascending within a sequence. Reads the device;
/// for tests.
void check_contents(const Ragged& r);

}  // namespace occam
