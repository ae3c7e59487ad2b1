#include "ops/patch_embed/op.h"

#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

Arrays naive(const Arrays& in) {
  const Array &x = in[0], &w = in[1];
  int64_t p = w.size(2), rows = x.size(2) / p, columns = x.size(3) / p, d = w.size(0);
  Array y({x.size(0), rows * columns, d});
  for (int64_t b = 0; b < x.size(0); ++b)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t o = 0; o < d; ++o) {
          double sum = in[2].absent() ? 0 : in[2](o);
          for (int64_t k = 0; k < x.size(1); ++k)
            for (int64_t i = 0; i < p; ++i)
              for (int64_t j = 0; j < p; ++j) sum += x(b, k, r * p + i, c * p + j) * w(o, k, i, j);
          y(b, r * columns + c, o) = sum;
        }
  return {y};
}
}  // namespace

OP_SPEC(patch_embed) {
  auto add = [&](const char* name, Shape x, int64_t d, int64_t p, bool bias) -> Sample& {
    double k = double(x[1] * p * p);
    return spec
        .sample(
            name, {randn(x), randn({d, x[1], p, p}), bias ? randn({d}) : absent()},
            [](const std::vector<Tensor>& in) {
              return std::vector{occam::patch_embed(in[0], in[1], in[2])};
            },
            naive)
        .sum_length(k)
        .cancelling_terms(2, 2);
  };
  add("2x3x4x6-p2", {2, 3, 4, 6}, 5, 2, true).small();
  add("1x1x3x3-p3", {1, 1, 3, 3}, 4, 3, true).small();
  add("2x3x16x16-p8", {2, 3, 16, 16}, 7, 8, true);
  add("2x3x12x8-p4", {2, 3, 12, 8}, 9, 4, true);
  add("1x3x32x16-p16", {1, 3, 32, 16}, 8, 16, true);
  add("no-bias", {1, 2, 6, 3}, 3, 3, false);
  add("empty-batch", {0, 3, 4, 4}, 3, 2, true);
  spec.bad(
      "size",
      [] {
        occam::patch_embed(occam::zeros({1, 3, 30, 32}), occam::zeros({4, 3, 16, 16}));
      },
      "patch_embed: images are 30 by 32 pixels, not a multiple of the patch size 16");
  spec.bad(
      "channels",
      [] {
        occam::patch_embed(occam::zeros({1, 1, 32, 32}), occam::zeros({4, 3, 16, 16}));
      },
      "contract  x: b c H W, w: d c p p");
}
