#include "ops/token_embed/op.h"

#include "ops/concat/op.h"
#include "ops/elementwise/op.h"
#include "ops/spec.h"
#include "ops/view/op.h"

OP_SPEC(token_embed) {
  using namespace occam::spec;
  using occam::Tensor;
  auto add = [&](const char* name, int64_t b, int64_t p, int64_t n, int64_t c) -> Sample& {
    return spec
        .sample(
            name, {randn({b, n, c}), randn({p, c}), randn({p + n, c})},
            [](const std::vector<Tensor>& in) {
              return std::vector{occam::token_embed(in[0], in[1], in[2])};
            },
            [=](const Arrays& in) -> Arrays {
              Array y({b, p + n, c});
              for (int64_t i = 0; i < b; ++i)
                for (int64_t t = 0; t < p + n; ++t)
                  for (int64_t k = 0; k < c; ++k)
                    y(i, t, k) = (t < p ? in[1](t, k) : in[0](i, t - p, k)) + in[2](t, k);
              return {y};
            })
        .same_as([=](const std::vector<Tensor>& in) {
          Tensor prefix = occam::expand(occam::reshape(in[1], {1, p, c}), {b, p, c});
          return std::vector{occam::add(occam::concat({prefix, in[0]}, 1), in[2])};
        })
        .cancelling_terms(1, 1);
  };
  add("1x1+1x1", 1, 1, 1, 1).small();
  add("2x1+3x5", 2, 1, 3, 5).small();
  add("3x2+4x8", 3, 2, 4, 8).small();
  add("3x0+4x8", 3, 0, 4, 8);
  add("3x2+0x8", 3, 2, 0, 8);
  add("0x1+3x8", 0, 1, 3, 8);
  add("5x1+65x72", 5, 1, 65, 72);
  spec.bad(
      "places",
      [] {
        occam::token_embed(occam::zeros({2, 3, 4}), occam::zeros({1, 4}), occam::zeros({5, 4}));
      },
      "token_embed: 3 tokens behind 1 others for 5 places");
}
