#pragma once
// bf16 and f16 as storage types. Conversion from float rounds to nearest even, on the host and in kernels.
#include <bit>
#include <cstdint>

#ifdef __CUDACC__
#define OCCAM_HD __host__ __device__
#else
#define OCCAM_HD
#endif

namespace occam {

struct bf16 {
  uint16_t bits;
  bf16() = default;
  OCCAM_HD explicit bf16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));  // one instruction; a NaN becomes 0x7fff
#else
    uint32_t u = as_bits(value);
    // A NaN must stay a NaN: rounding its payload up could make an infinity.
    bits = (u & 0x7fffffffu) > 0x7f800000u ? uint16_t((u >> 16) | 0x40u)
                                           : uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
  }
  OCCAM_HD operator float() const { return as_float(uint32_t(bits) << 16); }

  OCCAM_HD static uint32_t as_bits(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    return std::bit_cast<uint32_t>(value);
#endif
  }
  OCCAM_HD static float as_float(uint32_t value) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(value);
#else
    return std::bit_cast<float>(value);
#endif
  }
};

/// IEEE binary16. Host only: no kernel computes in it.
struct f16 {
  uint16_t bits;
  f16() = default;
  explicit f16(float value);
  operator float() const;
};

}  // namespace occam
