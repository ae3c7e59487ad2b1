#pragma once
// From a run-time dtype to a compile-time type: dispatch_float(x.dtype(), [&]<class T>() { ... }).
#include "core/check.h"
#include "core/dtype.h"

namespace occam {

/// Types that CPU kernels compute in: f32 and f64. (bf16 and f16 are upcast before a CPU kernel sees them.)
template <class F>
decltype(auto) dispatch_float(DType dtype, F&& f) {
  if (dtype == DType::f32) return f.template operator()<float>();
  OCCAM_CHECK(dtype == DType::f64, ErrorKind::shape, "dtype {} where f32 or f64 is needed", name_of(dtype));
  return f.template operator()<double>();
}

/// Types that CUDA kernels compute on: f32 and bf16.
template <class F>
decltype(auto) dispatch_cuda(DType dtype, F&& f) {
  if (dtype == DType::f32) return f.template operator()<float>();
  OCCAM_CHECK(dtype == DType::bf16, ErrorKind::shape, "dtype {} on a GPU, where f32 or bf16 is needed",
              name_of(dtype));
  return f.template operator()<bf16>();
}

template <class F>
decltype(auto) dispatch_all(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f.template operator()<float>();
    case DType::f64:
      return f.template operator()<double>();
    case DType::bf16:
      return f.template operator()<bf16>();
    case DType::f16:
      return f.template operator()<f16>();
    case DType::i64:
      return f.template operator()<int64_t>();
    case DType::i32:
      return f.template operator()<int32_t>();
    case DType::u8:
      return f.template operator()<uint8_t>();
    case DType::bool_:
      return f.template operator()<bool>();
  }
  fail(ErrorKind::internal, "unknown dtype");
}

/// True when a CUDA kernel would be called; `OCCAM_ON_CUDA(call)` compiles to an error in a build without
/// CUDA, so op code reads the same in both.
#if OCCAM_CUDA
#define OCCAM_ON_CUDA(...) __VA_ARGS__
#else
#define OCCAM_ON_CUDA(...) ::occam::fail(::occam::ErrorKind::device, "this build has no CUDA")
#endif

}  // namespace occam
