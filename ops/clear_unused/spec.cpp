#include "ops/clear_unused/op.h"

#include "ops/ragged_spec.h"

OP_SPEC(clear_unused) {
  using namespace occam::spec;
  using occam::Tensor;
  auto copy = [](const Arrays& in) -> Arrays { return {in[0]}; };
  auto copy_tensor = [](const std::vector<Tensor>& in) { return std::vector{in[0]}; };
  for (const auto& [name, p] : packed_cases({0}))
    for (int64_t width : {1, 8, 3}) {  // 8: units of 16 bytes in both types
      Sample& sample = spec.sample(
          name + "-" + std::to_string(width), {p.rows(randn({p.n, width})), p.offsets()},
          [p = p](const std::vector<Tensor>& in) {
            return std::vector{occam::clear_unused(in[0], p.sequences(in[1]))};
          },
          p.naive(copy));
      sample.small();
      if (p.used() > 0) sample.same_as(p.alone(copy_tensor));
    }
  spec.bad(
      "offsets",
      [] {
        occam::clear_unused(occam::zeros({2, 3}), {occam::from_vector(std::vector<int32_t>{0, 3}), 3});
      },
      "clear_unused: offsets run from 0 to 3, there are 2 rows");
}
