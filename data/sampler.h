#pragma once
// In which order a data set is read.
#include <cstdint>
#include <vector>

#include "core/rng.h"

namespace occam {

/// The numbers 0 ... count-1 in random order (Fisher and Yates, in Durstenfeld's form).
std::vector<int64_t> permutation(int64_t count, Rng& rng);

struct SamplerOptions {
  int64_t batch = 1;
  bool shuffle = false;
  bool drop_last = false;  // leave out the last batch of an epoch when it is not full
  uint64_t seed = 0;
};

/// Cuts epochs into batches. Everything is a function of (seed, epoch, batch), so a position is two integers
/// and any batch can be asked for again.
class Sampler {
 public:
  /// Throws Error{usage} when there is no image, the batch is below 1, or drop_last leaves nothing.
  Sampler(int64_t size, SamplerOptions options);
  int64_t batches_per_epoch() const { return batches_; }
  /// Indices of the images of one batch. Keeps the order of the last epoch asked for; not for several
  /// threads.
  std::vector<int64_t> batch(int64_t epoch, int64_t index);

 private:
  int64_t size_, batches_;
  SamplerOptions options_;
  int64_t ordered_epoch_ = -1;
  std::vector<int64_t> order_;
};

}  // namespace occam
