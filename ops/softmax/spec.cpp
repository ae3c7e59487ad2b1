#include "ops/softmax/op.h"

#include <algorithm>
#include <cmath>

#include "ops/spec.h"

namespace {
using namespace occam::spec;

Arrays naive(const Arrays& in) {
  Array y = in[0];
  int64_t n = y.size(-1);
  for (size_t row = 0; row < y.v.size(); row += size_t(n)) {
    auto begin = y.v.begin() + int64_t(row), end = begin + n;
    double largest = *std::max_element(begin, end), sum = 0;
    for (auto it = begin; it != end; ++it) sum += * it = std::exp(*it - largest);
    for (auto it = begin; it != end; ++it) *it /= sum;
  }
  return {y};
}
}  // namespace

OP_SPEC(softmax) {
  auto call = [](const std::vector<occam::Tensor>& in) { return std::vector{occam::softmax(in[0])}; };
  auto add = [&](const occam::Shape& s, const char* name) -> Sample& {
    // Entries reach about 30: x - max is rounded there, and exp turns that into a relative error of 30
    // roundings.
    return spec.sample(name, {outliers(s)}, call, naive)
        .sum_length(double(s[-1]))
        .conditioned(4)
        .cancelling_terms(0, 1);
  };
  add({1, 1}, "1x1").small();
  add({3, 7}, "3x7").small();
  add({0, 5}, "empty-batch");
  add({5, 64}, "5x64");
  add({2, 5, 197}, "2x5x197");
  add({3, 300}, "3x300");
  add({4, 1000}, "4x1000");
  add({3, 4097}, "3x4097");
  add({2, 4104}, "2x4104");
  spec.bad(
      "empty-axis",
      [] {
        occam::softmax(occam::empty({3, 0}));
      },
      "softmax: axis `n` of x [3,0] is empty");
}
