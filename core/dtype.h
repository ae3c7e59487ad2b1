#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/half.h"

namespace occam {

enum class DType : uint8_t { f32, f64, bf16, f16, i64, i32, u8, bool_ };

size_t size_of(DType dtype);
/// "f32", "bf16", ..., "bool".
std::string_view name_of(DType dtype);
bool is_floating(DType dtype);
/// Unit roundoff of a floating type: the largest relative error of one rounding.
double unit_roundoff(DType dtype);

template <class T>
struct dtype_of_t;
template <>
struct dtype_of_t<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of_t<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct dtype_of_t<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of_t<f16> {
  static constexpr DType value = DType::f16;
};
template <>
struct dtype_of_t<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct dtype_of_t<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct dtype_of_t<uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct dtype_of_t<bool> {
  static constexpr DType value = DType::bool_;
};
template <class T>
inline constexpr DType dtype_of = dtype_of_t<T>::value;

}  // namespace occam
