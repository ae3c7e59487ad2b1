#include "ops/view/op.h"

#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;
}  // namespace

OP_SPEC(view) {
  auto reshape = [&](const char* name, Shape from, Shape to, Shape result) -> Sample& {
    return spec.sample(
        name, {randn(from)},
        [to](const std::vector<Tensor>& in) { return std::vector{occam::reshape(in[0], to)}; },
        [result](const Arrays& in) -> Arrays {
          Array y = in[0];
          y.shape = result;
          return {y};
        });
  };
  reshape("reshape", {2, 6, 5}, {3, 4, 5}, {3, 4, 5}).small();
  reshape("reshape-infer", {2, 6}, {3, -1}, {3, 4});
  reshape("reshape-scalar", {1, 1}, {}, {});
  reshape("reshape-empty", {0, 6}, {0, 2, 3}, {0, 2, 3});
  spec.sample(
          "permute", {randn({2, 3, 4})},
          [](const std::vector<Tensor>& in) {
            return std::vector{occam::permute(in[0], {2, 0, 1})};
          },
          [](const Arrays& in) -> Arrays {
            Array y({4, 2, 3});
            for (int64_t i = 0; i < 2; ++i)
              for (int64_t j = 0; j < 3; ++j)
                for (int64_t k = 0; k < 4; ++k) y(k, i, j) = in[0](i, j, k);
            return {y};
          })
      .small();
  spec.sample(
      "transpose", {randn({3, 5})},
      [](const std::vector<Tensor>& in) { return std::vector{occam::transpose(in[0], -1, 0)}; },
      [](const Arrays& in) -> Arrays {
        Array y({5, 3});
        for (int64_t i = 0; i < 3; ++i)
          for (int64_t j = 0; j < 5; ++j) y(j, i) = in[0](i, j);
        return {y};
      });
  spec.sample(
          "expand", {randn({1, 3})},
          [](const std::vector<Tensor>& in) {
            return std::vector{occam::expand(in[0], {4, 2, 3})};
          },
          [](const Arrays& in) -> Arrays {
            Array y({4, 2, 3});
            for (size_t i = 0; i < y.v.size(); ++i) y.v[i] = in[0].v[i % 3];
            return {y};
          })
      .small()
      .sum_length(8)
      .cancelling_terms(0, 1);
  spec.bad(
      "reshape",
      [] {
        occam::reshape(occam::zeros({2, 3}), {4, -1});
      },
      "6 elements do not fit");
  spec.bad(
      "permute",
      [] {
        occam::permute(occam::zeros({2, 3}), {0, 0});
      },
      "an axis occurs twice");
  spec.bad(
      "expand",
      [] {
        occam::expand(occam::zeros({2, 3}), {4, 3});
      },
      "do not broadcast");
}
