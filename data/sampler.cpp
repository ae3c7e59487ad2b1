#include "data/sampler.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"

namespace occam {

std::vector<int64_t> permutation(int64_t count, Rng& rng) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t(0));
  for (int64_t i = count - 1; i > 0; --i) std::swap(order[size_t(i)], order[size_t(rng.below(i + 1))]);
  return order;
}

Sampler::Sampler(int64_t size, SamplerOptions options) : size_(size), options_(options) {
  OCCAM_CHECK(size >= 1, ErrorKind::usage, "the data set is empty");
  OCCAM_CHECK(options.batch >= 1, ErrorKind::usage, "batch size {} is below 1", options.batch);
  batches_ = options.drop_last ? size / options.batch : (size - 1) / options.batch + 1;
  OCCAM_CHECK(batches_ >= 1, ErrorKind::usage,
              "batch size {} is above the {} images there are, and incomplete batches are dropped",
              options.batch, size);
}

std::vector<int64_t> Sampler::batch(int64_t epoch, int64_t index) {
  OCCAM_ASSERT(epoch >= 0 && index >= 0 && index < batches_);
  int64_t start = index * options_.batch, count = std::min(options_.batch, size_ - start);
  if (!options_.shuffle) {
    std::vector<int64_t> indices(static_cast<size_t>(count));
    std::iota(indices.begin(), indices.end(), start);
    return indices;
  }
  if (ordered_epoch_ != epoch) {
    Rng rng(options_.seed, "data.order", uint64_t(epoch));
    order_ = permutation(size_, rng);
    ordered_epoch_ = epoch;
  }
  return {order_.begin() + start, order_.begin() + start + count};
}

}  // namespace occam
