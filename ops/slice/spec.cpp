#include "ops/slice/op.h"

#include "ops/spec.h"

OP_SPEC(slice) {
  using namespace occam::spec;
  using occam::Tensor;
  auto rows = [&](const char* name, int64_t start, int64_t length, int64_t step) -> Sample& {
    return spec.sample(
        name, {randn({3, 9, 2})},
        [=](const std::vector<Tensor>& in) {
          return std::vector{occam::slice(in[0], 1, start, length, step)};
        },
        [=](const Arrays& in) -> Arrays {
          Array y({3, length, 2});
          int64_t first = start < 0 ? start + 9 : start;
          for (int64_t i = 0; i < 3; ++i)
            for (int64_t j = 0; j < length; ++j)
              for (int64_t k = 0; k < 2; ++k) y(i, j, k) = in[0](i, first + j * step, k);
          return {y};
        });
  };
  rows("part", 2, 4, 1).small();
  rows("stepped", 1, 4, 2).small();
  rows("from-end", -1, 1, 1);
  rows("all", 0, 9, 1);
  rows("none", 9, 0, 1);
  spec.sample(
      "select", {randn({3, 4})},
      [](const std::vector<Tensor>& in) { return std::vector{occam::select(in[0], 1, -2)}; },
      [](const Arrays& in) -> Arrays {
        Array y({3});
        for (int64_t i = 0; i < 3; ++i) y(i) = in[0](i, 2);
        return {y};
      });
  auto parts = [&](const char* name, int axis, std::vector<int64_t> sizes) {
    spec.sample(
            name, {randn({3, 9, 2})},
            [=](const std::vector<Tensor>& in) { return occam::split(in[0], axis, sizes); },
            [=](const Arrays& in) {
              Arrays y;
              int64_t start = 0;
              for (int64_t size : sizes) {
                Array part(in[0].shape.with(axis, size));
                for (int64_t i = 0; i < part.size(0); ++i)
                  for (int64_t j = 0; j < part.size(1); ++j)
                    for (int64_t k = 0; k < part.size(2); ++k)
                      part(i, j, k) = axis == 0   ? in[0](start + i, j, k)
                                      : axis == 1 ? in[0](i, start + j, k)
                                                  : in[0](i, j, start + k);
                y.push_back(part);
                start += size;
              }
              return y;
            })
        .small();
  };
  parts("split-in-3", 1, {2, 4, 3});
  parts("split-in-2", 2, {1, 1});
  parts("split-with-nothing", 0, {0, 3});
  spec.bad(
      "split-sizes",
      [] {
        occam::split(occam::zeros({4}), 0, {1, 2});
      },
      "split: 2 parts of 3 elements together, of axis 0 of x [4]");
  spec.bad(
      "range", [] { occam::slice(occam::zeros({4}), 0, 2, 3); }, "is out of range");
}
