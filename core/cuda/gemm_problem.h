#pragma once
// A product as cuBLASLt's descriptors, and what tells it from other products. For cublaslt.cpp alone.
#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <string>

#include "core/cuda/cublaslt.h"

namespace occam::cuda {

[[noreturn]] void fail_cublas(cublasStatus_t status, const char* call, const std::string& where);

#define OCCAM_CUBLAS_CHECK(call, where)                                                     \
  do {                                                                                      \
    const cublasStatus_t occam_status_ = (call);                                            \
    if (occam_status_ != CUBLAS_STATUS_SUCCESS) fail_cublas(occam_status_, #call, (where)); \
  } while (false)

/// Largest power of two up to 256 that divides the address; cuBLASLt assumes 256 unless told.
uint32_t alignment(const void* pointer);

/// Packed strides filled in and contradictions refused.
GemmArgs completed(GemmArgs g);

/// All of a problem that an algorithm's choice may depend on; the device comes first.
using ProblemKey = std::array<int64_t, 24>;
ProblemKey key_of(const GemmArgs& g, int device);

/// cuBLASLt is column-major and a row-major matrix is its transpose there: d^T = op(b)^T op(a)^T. So our b is
/// its A, our a its B, and n comes before m.
struct Descriptors {
  explicit Descriptors(const GemmArgs& g);

  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t a, b, c, d;
  double alpha64, beta64;
  float alpha32, beta32;
  bool f64;

  const void* alpha() const { return f64 ? static_cast<const void*>(&alpha64) : &alpha32; }
  const void* beta() const { return f64 ? static_cast<const void*>(&beta64) : &beta32; }
};

}  // namespace occam::cuda
