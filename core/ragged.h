#pragma once
// Rows of different lengths packed without padding, with everything but the capacity kept on the device, so
// that dropping tokens needs no host synchronisation.
#include "core/rows.h"
#include "core/tensor.h"

namespace occam {

/// What an op's ragged form takes beside token tensors whose leading axis holds the rows [n] of all
/// sequences, one sequence after another: sequence i is rows offsets[i] .. offsets[i+1]. Rows from offsets[b]
/// on are never read; results have zeros there, in outputs and in gradients. Undefined offsets: not ragged.
struct Sequences {
  Tensor offsets;  // contiguous i32 [b+1] on the data's device, ascending, offsets[0] = 0, offsets[b] <= n
  int64_t longest = 0;  // no sequence has more rows; known on the host, so that grids need no synchronisation

  explicit operator bool() const { return offsets.defined(); }
  int64_t count() const { return offsets.size(0) - 1; }
};

/// Throws Error{shape} naming `op` when `s` does not describe the rows of x [n, ...]. On the CPU contents
/// too.
void check_sequences(const char* op, const Sequences& s, const Tensor& x);
/// For kernels: sequences of `n` rows in all.
SequenceRows sequence_rows(const Tensor& offsets, int64_t longest, int64_t n);
/// Zeros in the rows that belong to no sequence of x, contiguous and its leading axes `n` rows.
void clear_unused_rows(const Tensor& x, const Tensor& offsets, int64_t n);

/// Sequence i holds rows offsets[i] .. offsets[i+1] of `data`. Rows from `count` to the capacity are
/// undefined; kernels launch for the capacity and stop at `count`.
struct Ragged {
  Tensor data;          // [capacity, c]
  Tensor offsets;       // i32 [b+1], ascending, offsets[0] = 0, offsets[b] = count
  Tensor token_index;   // i32 [capacity]: position of each row in its sequence before tokens were dropped
  Tensor count;         // i32 [1]: rows in use
  Tensor overflow;      // i32 [1]: not 0 when more rows were wanted than the capacity holds
  int64_t longest = 0;  // no sequence has more rows; dropping tokens leaves it as it is

  int64_t capacity() const { return data.size(0); }
  int64_t batch() const { return offsets.size(0) - 1; }
  Sequences sequences() const { return {offsets, longest}; }
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
