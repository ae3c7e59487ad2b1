#include "apps/bench/ladder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/bench/model.h"
#include "apps/common/app.h"
#include "core/check.h"
#include "core/config.h"
#include "core/stream.h"
#include "ops/ladder.h"

namespace occam {
namespace {

/// Largest difference over what is allowed; infinite when an element is not finite.
double error_of(const Tensor& got, const Tensor& expected, const Ladder& ladder) {
  const std::vector<double> a = raw::to(raw::to(got, kCPU), DType::f64).to_vector<double>();
  const std::vector<double> b = expected.to_vector<double>();
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    worst = std::max(worst, std::abs(a[i] - b[i]) / (ladder.relative * std::abs(b[i]) + ladder.absolute));
  }
  return worst;
}

}  // namespace

std::vector<std::string> ladder_names() {
  std::vector<std::string> names;
  for (const LadderEntry& entry : ladder_table()) names.emplace_back(entry.op);
  return names;
}

void climb_ladder(const std::string& op, Device device, const TimingOptions& options,
                  const std::function<void(const Json&)>& keep) {
  const std::vector<std::string> names = ladder_names();
  OCCAM_CHECK(!names.empty(), ErrorKind::usage,
              "ladders are CUDA kernels, and this build has none; build with CUDA=1");
  const auto at = std::find(names.begin(), names.end(), op);
  OCCAM_CHECK(at != names.end(), ErrorKind::usage, "op '{}' has no ladder; {}", op, name_hint(op, names));
  OCCAM_CHECK(device.is_cuda(), ErrorKind::usage, "ladder {} needs a GPU", op);
  Ladder ladder = ladder_table()[size_t(at - names.begin())].make(device);
  void* stream = current_stream(device).handle;
  const Ceilings& most = ceilings(device, ladder.dtype);
  const double floor_ms = 1e3 * std::max(ladder.cost.flops / most.flops, ladder.cost.bytes / most.bytes);
  for (const LadderStep& step : ladder.steps) {
    if (stop_requested()) return;
    double error = 0;
    for (Tensor& y : ladder.outputs) y.fill_(NAN);  // what a step leaves out must show
    step.run(ladder.inputs, ladder.outputs, stream);
    for (size_t i = 0; i < ladder.outputs.size(); ++i)
      error = std::max(error, error_of(ladder.outputs[i], ladder.expected[i], ladder));
    OCCAM_CHECK(error <= 1, ErrorKind::internal,
                "step {} of ladder {} is wrong: an element is {:.3g} times as far off as roundings allow",
                step.name, op, error);
    const Timing t = measure(
        device, [&] { step.run(ladder.inputs, ladder.outputs, stream); }, options);
    Json line = {{"who", "occam"},    {"what", "ladder"},  {"ladder", op},
                 {"step", step.name}, {"idea", step.idea}, {"shape", ladder.shape}};
    line.update(json_of(t));
    line.update({{"gflop_s", ladder.cost.flops / t.ms / 1e6},
                 {"gb_s", ladder.cost.bytes / t.ms / 1e6},
                 {"floor_ms", floor_ms},
                 {"share_of_roofline", floor_ms / t.ms},
                 {"error", error}});
    keep(line);
  }
}

}  // namespace occam
