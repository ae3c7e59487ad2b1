#include "core/shape.h"

#include <algorithm>

#include "core/check.h"

namespace occam {

Shape::Shape(std::span<const int64_t> sizes) {
  for (int64_t size : sizes) push_back(size);
}

void Shape::push_back(int64_t size) {
  OCCAM_CHECK(rank_ < kMaxDims, ErrorKind::shape, "a shape has more than {} axes", kMaxDims);
  sizes_[size_t(rank_++)] = size;
}

int64_t Shape::numel() const {
  int64_t n = 1;
  bool overflow = false;
  for (int64_t size : *this) {
    OCCAM_CHECK(size >= 0, ErrorKind::shape, "negative size in shape {}", str());
    overflow |= __builtin_mul_overflow(n, size, &n);
    if (size == 0) return 0;
  }
  OCCAM_CHECK(!overflow, ErrorKind::shape, "shape {} has more elements than int64 holds", str());
  return n;
}

int Shape::wrap(int axis) const {
  int wrapped = axis < 0 ? axis + rank_ : axis;
  OCCAM_CHECK(wrapped >= 0 && wrapped < rank_, ErrorKind::shape, "axis {} is out of range for shape {}", axis,
              str());
  return wrapped;
}

Shape Shape::without(int axis) const {
  axis = wrap(axis);
  Shape result;
  for (int i = 0; i < rank_; ++i)
    if (i != axis) result.push_back(sizes_[size_t(i)]);
  return result;
}

Shape Shape::with(int axis, int64_t size) const {
  Shape result = *this;
  result[axis] = size;
  return result;
}

bool Shape::operator==(const Shape& other) const {
  return std::equal(begin(), end(), other.begin(), other.end());
}

std::string Shape::str() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) text += (i ? "," : "") + std::to_string(sizes_[size_t(i)]);
  return text + "]";
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= std::max<int64_t>(shape[i], 1);
  }
  return strides;
}

Shape broadcast_shapes(const Shape& a, const Shape& b) {
  const Shape& longer = a.rank() >= b.rank() ? a : b;
  const Shape& shorter = a.rank() >= b.rank() ? b : a;
  Shape result = longer;
  int shift = longer.rank() - shorter.rank();
  for (int i = 0; i < shorter.rank(); ++i) {
    int64_t x = longer[i + shift], y = shorter[i];
    OCCAM_CHECK(x == y || x == 1 || y == 1, ErrorKind::shape,
                "shapes {} and {} do not broadcast: {} against {}", a.str(), b.str(),
                a.rank() >= b.rank() ? x : y, a.rank() >= b.rank() ? y : x);
    result[i + shift] = x == 1 ? y : x;
  }
  return result;
}

}  // namespace occam
