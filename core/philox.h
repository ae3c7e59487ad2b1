#pragma once
// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), the same bits on the
// host and in kernels.
#include <cstdint>

#include "core/half.h"

namespace occam {

struct Philox4 {
  uint32_t v[4];
};

/// Ten rounds over a 128-bit counter with a 64-bit key.
OCCAM_HD inline Philox4 philox4x32(uint64_t key, uint64_t counter_lo, uint64_t counter_hi) {
  uint32_t c0 = uint32_t(counter_lo), c1 = uint32_t(counter_lo >> 32);
  uint32_t c2 = uint32_t(counter_hi), c3 = uint32_t(counter_hi >> 32);
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Uniform in [0, 1) with 24 bits.
OCCAM_HD inline float uniform_from_bits(uint32_t bits) { return float(bits >> 8) * (1.0f / 16777216.0f); }

/// Uniform number of element `index` at `step`: counter = (index / 4, step), lane index % 4.
OCCAM_HD inline float philox_uniform(uint64_t key, uint64_t step, uint64_t index) {
  Philox4 r = philox4x32(key, index >> 2, step);
  uint32_t lane = uint32_t(index & 3);
  return uniform_from_bits(lane == 0 ? r.v[0] : lane == 1 ? r.v[1] : lane == 2 ? r.v[2] : r.v[3]);
}

}  // namespace occam
