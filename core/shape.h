#pragma once
// Shape: up to eight int64 sizes stored inline. Strides share the type.
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace occam {

inline constexpr int kMaxDims = 8;

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes)
      : Shape(std::span<const int64_t>(sizes.begin(), sizes.size())) {}
  /// Throws Error{shape} when there are more than kMaxDims sizes.
  explicit Shape(std::span<const int64_t> sizes);

  int rank() const { return rank_; }
  /// Size of an axis; negative axes count from the end. Throws Error{shape} when out of range.
  int64_t operator[](int axis) const { return sizes_[wrap(axis)]; }
  int64_t& operator[](int axis) { return sizes_[wrap(axis)]; }
  /// Number of elements; throws Error{shape} on a negative size or an overflow of int64.
  int64_t numel() const;
  /// `axis` in [-rank, rank) as [0, rank).
  int wrap(int axis) const;

  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + rank_; }
  void push_back(int64_t size);
  Shape without(int axis) const;
  Shape with(int axis, int64_t size) const;
  bool operator==(const Shape& other) const;
  /// "[8,197,192]"
  std::string str() const;

 private:
  std::array<int64_t, kMaxDims> sizes_{};
  int rank_ = 0;
};

/// Row-major strides in elements.
Shape contiguous_strides(const Shape& shape);
/// NumPy broadcasting of two shapes; throws Error{shape} naming both when they do not fit.
Shape broadcast_shapes(const Shape& a, const Shape& b);

}  // namespace occam
