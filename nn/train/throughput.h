#pragma once
#include <chrono>
#include <cstdint>

namespace occam {

/// Images a second of a pass. The first batch is left out (it pays for kernels, caches and memory) unless it
/// is the only one.
class Throughput {
 public:
  /// After each batch, with the number of images done so far.
  void update(int64_t images) {
    images_ = images;
    last_ = Clock::now();
    if (first_images_ == 0) first_images_ = images, first_ = last_;
  }
  double images_per_s() const {
    const bool only_one = images_ == first_images_;
    const double seconds = std::chrono::duration<double>(last_ - (only_one ? start_ : first_)).count();
    return seconds > 0 ? double(only_one ? images_ : images_ - first_images_) / seconds : 0;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now(), first_ = start_, last_ = start_;
  int64_t images_ = 0, first_images_ = 0;
};

}  // namespace occam
