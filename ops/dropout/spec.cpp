#include "ops/dropout/op.h"

#include "core/rng.h"
#include "ops/spec.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

// A fixed seed and call number: every call draws the same mask.
constexpr uint64_t kSeed = 5;
uint64_t key_of_first_call() {
  occam::op_random::seed(kSeed, 3);
  return occam::op_random::next_key();
}
}  // namespace

OP_SPEC(dropout) {
  auto add = [&](const char* name, Shape shape, double p, bool path) -> Sample& {
    return spec.sample(
        name, {randn(shape)},
        [=](const std::vector<Tensor>& in) {
          occam::op_random::seed(kSeed, 3);
          return std::vector{path ? occam::drop_path(in[0], p, true) : occam::dropout(in[0], p, true)};
        },
        [=](const Arrays& in) -> Arrays {
          Array y = in[0];
          uint64_t key = key_of_first_call(), group = path ? y.v.size() / size_t(y.size(0)) : 1;
          for (size_t i = 0; i < y.v.size(); ++i)
            y.v[i] = occam::philox_uniform(key, 3, i / group) >= float(p) ? y.v[i] / (1 - p) : 0;
          return {y};
        });
  };
  add("3x7", {3, 7}, 0.5, false).small();
  add("1025", {1025}, 0.1, false);
  add("path-9x3x5", {9, 3, 5}, 0.3, true).small();
  add("path-1x4", {1, 4}, 0.2, true);
  spec.bad(
      "p", [] { occam::dropout(occam::zeros({2}), 1, true); }, "dropout: p is 1");
}
