// The walk that CUDA copies and element-wise kernels use, checked on the host.
#include "core/cuda/strided.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace occam::cuda {
namespace {

using Places = std::vector<std::pair<int64_t, int64_t>>;

/// Offsets of both operands for every element, by the definition.
Places by_definition(const Shape& shape, const Shape& a, const Shape& b) {
  Places places;
  for (int64_t i = 0; i < shape.numel(); ++i) {
    int64_t rest = i, at_a = 0, at_b = 0;
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      at_a += rest % shape[axis] * a[axis];
      at_b += rest % shape[axis] * b[axis];
      rest /= shape[axis];
    }
    places.emplace_back(at_a, at_b);
  }
  std::sort(places.begin(), places.end());
  return places;
}

template <class Index>
Places by_walk(const Strided<2>& walk) {
  Places places;
  for (int64_t i = 0; i < walk.count; ++i) {
    int64_t at[2];
    walk.offsets(Index(i), at);
    places.emplace_back(at[0], at[1]);
  }
  std::sort(places.begin(), places.end());
  return places;
}

void expect_same(const Shape& shape, const Shape& a, const Shape& b, int rank) {
  Strided<2> walk = make_strided<2>(shape, {&a, &b});
  EXPECT_EQ(walk.rank, rank) << shape.str() << a.str() << b.str();
  EXPECT_EQ(by_walk<uint32_t>(walk), by_definition(shape, a, b));
  EXPECT_EQ(by_walk<int64_t>(walk), by_definition(shape, a, b));
}

TEST(Strided, ContiguousOperandsBecomeOneAxis) {
  Shape shape{2, 3, 1, 5};
  Shape strides = contiguous_strides(shape);
  expect_same(shape, strides, strides, 1);
  EXPECT_TRUE(make_strided<1>(shape, {&strides}).contiguous(0));
}

TEST(Strided, ScalarsAndSizeOneHaveNoAxes) {
  expect_same({}, {}, {}, 0);
  expect_same({1, 1}, {7, 7}, {9, 1}, 0);
}

TEST(Strided, EmptyShapesCountNothing) {
  Shape shape{3, 0, 2}, strides{0, 2, 1};
  EXPECT_EQ((make_strided<1>(shape, {&strides}).count), 0);
}

TEST(Strided, PermutedBroadcastSlicedAndReversedWalks) {
  expect_same({4, 5}, {5, 1}, {1, 4}, 2);                        // transpose
  expect_same({2, 3, 4, 5}, {60, 20, 5, 1}, {60, 5, 15, 1}, 4);  // [b t h d] -> [b h t d]
  expect_same({3, 4, 5}, {20, 5, 1}, {0, 0, 1}, 2);              // broadcast of a row
  expect_same({3, 4, 5}, {20, 5, 1}, {0, 5, 1}, 2);              // broadcast of a matrix
  expect_same({3, 4, 5}, {20, 5, 1}, {40, 10, 2}, 1);            // every second element
  expect_same({3, 4}, {4, 1}, {4, -1}, 2);                       // reversed rows
}

TEST(Strided, TheWrittenOperandDecidesTheOrder) {
  Shape shape{4, 5}, written{1, 4}, read{5, 1};
  Strided<2> walk = make_strided<2>(shape, {&written, &read});
  ASSERT_EQ(walk.rank, 2);
  EXPECT_EQ(walk.strides[0][1], 1);
  EXPECT_EQ(walk.sizes[1], 4);
  EXPECT_EQ(by_walk<uint32_t>(walk), by_definition(shape, written, read));
}

}  // namespace
}  // namespace occam::cuda
