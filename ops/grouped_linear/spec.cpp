#include "ops/grouped_linear/op.h"

#include "ops/concat/op.h"
#include "ops/linear/op.h"
#include "ops/slice/op.h"
#include "ops/spec.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

Arrays naive(const Arrays& in) {
  const Array &x = in[0], &w = in[1], &b = in[2];
  int64_t groups = w.size(0), outs = w.size(1), ins = w.size(2);
  Array y(x.shape.with(-1, outs));
  for (size_t row = 0; row < y.v.size() / size_t(groups * outs); ++row)
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t o = 0; o < outs; ++o) {
        double sum = b.absent() ? 0 : b(g, o);
        for (int64_t i = 0; i < ins; ++i)
          sum += w(g, o, i) * x.v[(row * size_t(groups) + size_t(g)) * size_t(ins) + size_t(i)];
        y.v[(row * size_t(groups) + size_t(g)) * size_t(outs) + size_t(o)] = sum;
      }
  return {y};
}

/// One linear op a group.
std::vector<Tensor> by_group(const std::vector<Tensor>& in) {
  const Tensor &x = in[0], &w = in[1], &b = in[2];
  int64_t groups = w.size(0), outs = w.size(1), ins = w.size(2);
  std::vector<Tensor> parts;
  for (int64_t g = 0; g < groups; ++g) {
    Tensor weight = occam::reshape(occam::slice(w, 0, g, 1), {outs, ins});
    Tensor bias = b ? occam::reshape(occam::slice(b, 0, g, 1), {outs}) : Tensor();
    parts.push_back(occam::linear(occam::slice(x, x.rank() - 2, g, 1), weight, bias));
  }
  return {occam::concat(parts, x.rank() - 2)};
}
}  // namespace

OP_SPEC(grouped_linear) {
  auto add = [&](const char* name, const Shape& x, int64_t outs, bool bias) -> Sample& {
    int64_t groups = x[-2], ins = x[-1], rows = x.numel() / std::max<int64_t>(1, groups * ins);
    return spec
        .sample(
            name, {randn(x), randn({groups, outs, ins}), bias ? randn({groups, outs}) : absent()},
            [](const std::vector<Tensor>& in) {
              return std::vector{occam::grouped_linear(in[0], in[1], in[2])};
            },
            naive)
        .sum_length(double(std::max({ins, outs, rows})))
        .half_roundings(bias ? 3 : 2)  // a kernel rounds the product and then the sum
        .same_as(by_group);
  };
  add("2x3x4", {2, 3, 4}, 5, true).small();
  add("2x5x3x7-no-bias", {2, 5, 3, 7}, 2, false).small();
  add("1x1x1", {1, 1, 1}, 1, true).small();
  add("4x17x3x32", {4, 17, 3, 32}, 16, true);
  add("3x50x2x64", {3, 50, 2, 64}, 64, true);
  add("no-rows", {0, 2, 4}, 3, true);
  spec.bad(
      "groups",
      [] {
        occam::grouped_linear(occam::zeros({2, 3, 4}), occam::zeros({2, 5, 4}));
      },
      "grouped_linear: axis `h` is 3 in x [2,3,4] but 2 in w [2,5,4]");
  spec.bad(
      "bias",
      [] {
        occam::grouped_linear(occam::zeros({2, 3, 4}), occam::zeros({3, 5, 4}), occam::zeros({5}));
      },
      "grouped_linear: b [5]");
}
