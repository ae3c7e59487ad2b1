#pragma once
// Checks with formatted messages. Host code only: Debian's fmt 9.1 does not compile under nvcc as C++20.
#include <fmt/format.h>

#include "core/error.h"

/// OCCAM_CHECK(cond, ErrorKind::input, "{}: wrong magic; is this a safetensors file?", path)
#define OCCAM_CHECK(condition, kind, ...)                \
  do {                                                   \
    if (!(condition)) [[unlikely]]                       \
      ::occam::fail((kind), ::fmt::format(__VA_ARGS__)); \
  } while (false)
/// For invariants of Occam itself.
#define OCCAM_ASSERT(condition)                                                                    \
  do {                                                                                             \
    if (!(condition)) [[unlikely]]                                                                 \
      ::occam::fail(::occam::ErrorKind::internal,                                                  \
                    ::fmt::format("{}:{}: broken invariant: {}", __FILE__, __LINE__, #condition)); \
  } while (false)
