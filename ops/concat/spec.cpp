#include "ops/concat/op.h"

#include "ops/spec.h"

OP_SPEC(concat) {
  using namespace occam::spec;
  using occam::Tensor;
  spec.sample(
          "middle", {randn({2, 3, 4}), randn({2, 1, 4}), randn({2, 0, 4})},
          [](const std::vector<Tensor>& in) { return std::vector{occam::concat(in, 1)}; },
          [](const Arrays& in) -> Arrays {
            Array y({2, 4, 4});
            for (int64_t i = 0; i < 2; ++i)
              for (int64_t k = 0; k < 4; ++k) {
                for (int64_t j = 0; j < 3; ++j) y(i, j, k) = in[0](i, j, k);
                y(i, 3, k) = in[1](i, 0, k);
              }
            return {y};
          })
      .small();
  spec.sample(
      "last", {randn({3, 2}), randn({3, 5})},
      [](const std::vector<Tensor>& in) { return std::vector{occam::concat(in, -1)}; },
      [](const Arrays& in) -> Arrays {
        Array y({3, 7});
        for (int64_t i = 0; i < 3; ++i)
          for (int64_t j = 0; j < 7; ++j) y(i, j) = j < 2 ? in[0](i, j) : in[1](i, j - 2);
        return {y};
      });
  spec.sample(
      "one", {randn({3})}, [](const std::vector<Tensor>& in) { return std::vector{occam::concat(in, 0)}; },
      [](const Arrays& in) { return in; });
  spec.bad(
      "none", [] { occam::concat({}, 0); }, "concat: nothing to join");
  spec.bad(
      "sizes",
      [] {
        occam::concat({occam::zeros({2, 3}), occam::zeros({3, 3})}, 1);
      },
      "concat: xs[1] is [3,3], xs[0] is [2,3]; only axis 1 may differ");
}
