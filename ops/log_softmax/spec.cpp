#include "ops/log_softmax/op.h"

#include <algorithm>
#include <cmath>

#include "ops/activation/op.h"
#include "ops/softmax/op.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Tensor;

Arrays naive(const Arrays& in) {
  Array y = in[0];
  int64_t n = y.size(-1);
  for (size_t row = 0; row < y.v.size(); row += size_t(n)) {
    auto begin = y.v.begin() + int64_t(row), end = begin + n;
    double largest = *std::max_element(begin, end), sum = 0;
    for (auto it = begin; it != end; ++it) sum += std::exp(*it - largest);
    for (auto it = begin; it != end; ++it) *it -= largest + std::log(sum);
  }
  return {y};
}
}  // namespace

OP_SPEC(log_softmax) {
  auto call = [](const std::vector<Tensor>& in) { return std::vector{occam::log_softmax(in[0])}; };
  auto add = [&](const occam::Shape& s, const char* name, double factor) -> Sample& {
    // Rounding y, down to -30 and below, by half an ulp is a relative error of 30 roundings in exp(y); gx is
    // the difference of gy and p sum(gy), of the size of the root of n at most where p is near 1.
    return spec.sample(name, {outliers(s, factor)}, call, naive)
        .sum_length(double(s[-1]))
        .conditioned(4)
        .cancelling_terms(1, std::sqrt(double(s[-1])));
  };
  add({1, 1}, "1x1", 8).small();
  add({3, 7}, "3x7", 2).small().same_as([](const std::vector<Tensor>& in) {
    return std::vector{occam::log(occam::softmax(in[0]))};
  });
  add({0, 5}, "empty-batch", 8);
  add({2, 5, 65}, "2x5x65", 8);
  add({2, 1000}, "2x1000", 8);
  // softmax underflows here, its logarithm must not: y reaches -400.
  spec.sample("far-apart", {values({2, 3}, {200, -200, 0, -1e3, -1e3, -1e3})}, call, naive)
      .conditioned(4)
      .small();
  spec.bad(
      "empty-axis",
      [] {
        occam::log_softmax(occam::empty({3, 0}));
      },
      "log_softmax: axis `n` of x [3,0] is empty");
  spec.bad(
      "other-axis",
      [] {
        occam::log_softmax(occam::zeros({3, 2}), 0);
      },
      "log_softmax: only the last axis, not axis 0 of [3,2]");
}
