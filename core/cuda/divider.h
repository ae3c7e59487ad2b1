#pragma once
// Division by a number that is known before a launch.
#include <cstdint>

#include "core/half.h"

namespace occam::cuda {

/// n / divisor as a product, for 0 <= n < 2^31 and 0 < divisor < 2^31: with 2^(s-1) < divisor <= 2^s and
/// m = 2^(32+s) / divisor rounded up, n m / 2^(32+s) is too large by less than 1 / divisor (Granlund and
/// Montgomery, PLDI 1994).
class Divider {
 public:
  Divider() = default;
  explicit Divider(int64_t divisor) {
    while ((int64_t(1) << shift_) < divisor) ++shift_;
    const uint64_t over = (uint64_t(1) << shift_) - uint64_t(divisor);  // m = 2^32 + factor
    factor_ = uint32_t((over << 32) / uint64_t(divisor) + 1);
  }
  OCCAM_HD uint32_t operator()(uint32_t n) const {
    return uint32_t((((uint64_t(n) * factor_) >> 32) + n) >> shift_);
  }

 private:
  uint32_t factor_ = 0, shift_ = 0;
};

}  // namespace occam::cuda
