#include "ops/cast/op.h"

#include "ops/elementwise/op.h"
#include "ops/spec.h"

OP_SPEC(cast) {
  using namespace occam::spec;
  auto to = [](occam::DType dtype) {
    return [dtype](const std::vector<occam::Tensor>& in) { return std::vector{occam::cast(in[0], dtype)}; };
  };
  auto same = [](const Arrays& in) { return in; };
  // Doubling makes a result of its own where the cast has nothing to do.
  spec.sample(
          "to-f32", {randn({3, 5})},
          [](const std::vector<occam::Tensor>& in) {
            auto wide = in[0].dtype() == occam::DType::f64 ? occam::DType::f64 : occam::DType::f32;
            return std::vector{occam::mul_scalar(occam::cast(in[0], wide), 2)};
          },
          [](const Arrays& in) -> Arrays {
            Array y = in[0];
            for (double& v : y.v) v *= 2;
            return {y};
          })
      .small();
  // Small integers are exact in every type.
  spec.sample("to-bf16", {values({2, 4}, {-3, -2, -1, 0, 1, 2, 3, 4})}, to(occam::DType::bf16), same)
      .no_gradient()
      .small();
  spec.sample("to-f64", {randn({7})}, to(occam::DType::f64), same).cpu_only();
  spec.bad(
      "integers",
      [] {
        occam::cast(occam::zeros({2}, {occam::DType::i64, occam::kCPU}), occam::DType::f32);
      },
      "cast: i64 to f32");
}
