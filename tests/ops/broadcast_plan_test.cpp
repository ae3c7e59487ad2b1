// How a call of too many threads is cut in two.
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "ops/elementwise/kernel.h"

namespace occam::kernels {
namespace {

using Places = std::vector<std::array<int64_t, 3>>;

/// Offsets in a, b and y of every element.
void walk(const BroadcastPlan& p, int64_t a, int64_t b, int64_t y, Places& places) {
  for (int64_t i = 0; i < p.count; ++i) {
    int64_t rest = i, at_a = a, at_b = b;
    for (int axis = p.rank - 1; axis >= 0; --axis) {
      at_a += rest % p.shape[axis] * p.a[axis], at_b += rest % p.shape[axis] * p.b[axis];
      rest /= p.shape[axis];
    }
    places.push_back({at_a, at_b, y + i});
  }
}

TEST(BroadcastPlan, HalvesAreTheWhole) {
  for (BroadcastPlan p :
       {BroadcastPlan{3, 30, {5, 2, 3}, {6, 3, 1}, {0, 3, 1}}, BroadcastPlan{1, 7, {7}, {1}, {0}},
        BroadcastPlan{3, 12, {1, 4, 3}, {0, 1, 4}, {0, 3, 1}}}) {
    Places whole, halves;
    walk(p, 0, 0, 0, whole);
    const Halves h(p);
    walk(h.first, 0, 0, 0, halves);
    walk(h.second, h.a, h.b, h.y, halves);
    EXPECT_GT(h.first.count, 0);
    EXPECT_EQ(whole, halves);
  }
}

}  // namespace
}  // namespace occam::kernels
