#include "apps/bench/op.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "apps/bench/model.h"
#include "autograd/apply.h"
#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/grad_mode.h"
#include "core/replay.h"

namespace occam {
namespace {

struct Work {
  Cost total;
  double in_bytes = 0, out_bytes = 0;
  int calls = 0;
  std::string op;  // the last one
};

/// Adds up the op calls while it lives.
class WorkCounter : public OpObserver {
 public:
  explicit WorkCounter(Work& work) : work_(work) {}
  void after(const OpEntry& entry, In inputs, const Outs& outputs, const Cost& cost) override {
    if (cost.flops == 0 && cost.bytes == 0) return;  // a view
    work_.total.flops += cost.flops, work_.total.bytes += cost.bytes;
    for (const Tensor& t : inputs) work_.in_bytes += bytes_of(t);
    for (const Tensor& t : outputs) work_.out_bytes += bytes_of(t);
    ++work_.calls, work_.op = entry.info.name;
  }

 private:
  static double bytes_of(const Tensor& t) { return t ? double(t.numel()) * double(size_of(t.dtype())) : 0.0; }
  Work& work_;
};

Json line_of(const OpCase& c, const char* pass, const Timing& t, const Cost& cost, const Ceilings& most,
             bool captured) {
  const double compute_ms = 1e3 * cost.flops / most.flops, memory_ms = 1e3 * cost.bytes / most.bytes;
  const double floor_ms = std::max(compute_ms, memory_ms);
  Json line = {{"who", "occam"}, {"what", "op"}, {"op", c.op}, {"shape", c.shape}, {"pass", pass}};
  line.update(json_of(t));
  line.update({{"gflop_s", cost.flops / t.ms / 1e6},
               {"gb_s", cost.bytes / t.ms / 1e6},
               {"floor_ms", floor_ms},
               {"share_of_roofline", floor_ms / t.ms},
               {"bound", compute_ms > memory_ms ? "compute" : "memory"},
               {"by", captured ? "graph" : "calls"}});
  return line;
}

}  // namespace

std::vector<Json> time_op(const OpCase& c, Device device, DType dtype, const TimingOptions& options,
                          bool tiny) {
  const std::vector<Tensor> inputs = c.make();
  Work work;
  Tensor y;
  {
    WorkCounter counter(work);
    y = c.call(inputs);
  }
  const Ceilings& most = ceilings(device, dtype, tiny);
  std::vector<Json> lines;
  {
    Replay replay(device);
    const auto forward = [&] {
      NoGrad no_grad;
      c.call(inputs);
    };
    const Timing t = measure(
        device, [&] { replay.run(forward); }, options);
    lines.push_back(line_of(c, "forward", t, work.total, most, replay.captured()));
  }
  if (!requires_grad(y)) return lines;
  // One op: its backward alone, again and again on what it saved. Several: a whole pass, less its forward.
  bool alone = work.calls == 1;
  Edge last{y.impl().autograd->node, y.impl().autograd->output};
  while (alone && last.node->name() != work.op) {  // views of what it gave
    alone = !last.node->edges.empty() && last.node->edges[0].node;
    if (alone) last = last.node->edges[0];
  }
  const Tensor gy = ones(alone ? last.node->outputs[size_t(last.output)].shape : y.shape(), options_of(y));
  Replay replay(device);
  const auto backward_pass = [&] {
    if (alone) {
      NoGrad no_grad;
      std::vector<Tensor> cotangents(last.node->outputs.size());
      cotangents[size_t(last.output)] = gy;
      last.node->backward(cotangents);
    } else {
      backward(c.call(inputs), gy);
    }
  };
  Timing t = measure(
      device, [&] { replay.run(backward_pass); }, options);
  if (!alone) {
    const double forward_ms = lines[0].at("ms");
    for (double* ms : {&t.ms, &t.low, &t.high}) *ms = std::max(*ms - forward_ms, 1e-6);
    for (double& ms : t.samples) ms -= forward_ms;
  }
  const Cost least{2 * work.total.flops, 2 * work.in_bytes + work.out_bytes};
  lines.push_back(line_of(c, "backward", t, least, most, replay.captured()));
  return lines;
}

}  // namespace occam
