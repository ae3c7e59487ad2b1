#pragma once
// The one way an op is called: contract, device and dtype rules, contiguity, forward, graph.
#include "autograd/ctx.h"

namespace occam {

/// Runs an op by its entry. On the CPU, bf16 and f16 inputs are computed in f32 and results rounded once.
Outs run(const OpEntry& entry, In inputs, std::any attrs);

template <IsOp Op>
Outs apply(std::initializer_list<Tensor> inputs, typename Op::Attrs attrs = {}) {
  return run(entry_of<Op>(), In(inputs.begin(), inputs.size()), std::any(std::move(attrs)));
}
template <IsOp Op>
Outs apply(In inputs, typename Op::Attrs attrs = {}) {
  return run(entry_of<Op>(), inputs, std::any(std::move(attrs)));
}

/// Watches every forward op call of this thread while it lives (FLOP counter, memory report). Observers nest.
/// Times of ops are told by core/trace.h.
class OpObserver {
 public:
  OpObserver();
  virtual ~OpObserver();
  OpObserver(const OpObserver&) = delete;
  OpObserver& operator=(const OpObserver&) = delete;
  virtual void after(const OpEntry& entry, In inputs, const Outs& outputs, const Cost& cost) = 0;
  /// backward(outputs) begins: the graph is whole.
  virtual void before_backward(std::span<const Tensor> outputs) {}
  /// For the engine.
  static void tell_backward(std::span<const Tensor> outputs);

 private:
  friend Outs run(const OpEntry&, In, std::any);
  OpObserver* previous_;
};

}  // namespace occam
