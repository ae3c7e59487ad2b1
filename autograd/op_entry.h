#pragma once
// What the framework knows of an op: metadata and function pointers, derived from the op's struct by a
// template.
#include <any>
#include <concepts>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/pattern.h"
#include "core/tensor.h"

namespace occam {

class Ctx;

using In = std::span<const Tensor>;        // inputs; an absent optional input is an undefined tensor
using Outs = std::vector<Tensor>;          // outputs
using Grads = std::vector<Tensor>;         // one gradient an input; undefined where none is needed
using GradsOut = std::span<const Tensor>;  // gradients of the outputs; undefined where an output was not used
using Shapes = std::span<const Shape>;

/// Which dtypes the floating inputs may have.
enum class Cast : uint8_t {
  same,  // all floating inputs share one dtype
  any    // the op deals with mixed dtypes itself
};
/// What limits the op on a GPU. A block's recomputation saves memory-bound ops first.
enum class Bound : uint8_t { memory, compute };
/// Whether inputs (and the gradients of outputs) are made contiguous before the op sees them.
enum class Layout : uint8_t { contiguous, strided };

struct OpInfo {
  const char* name;
  const char* contract;
  Cast cast = Cast::same;
  Bound bound = Bound::memory;
  Layout layout = Layout::contiguous;
  const char* hint = "";  // shown with a shape error
};

/// Work of one forward call. A multiply-add counts as two FLOPs.
struct Cost {
  double flops = 0;
  double bytes = 0;  // least traffic: each input read once, each output written once
};

/// The declared reason for an op without a gradient: static constexpr NonDifferentiable kNoGradient{"..."}.
struct NonDifferentiable {
  const char* because;
};

struct OpEntry {
  OpInfo info;
  Contract contract;
  Outs (*forward)(Ctx&, In, const std::any& attrs);
  Grads (*backward)(Ctx&, GradsOut);  // null when not differentiable
  const char* no_gradient_because;    // null when differentiable
  /// `dtype` is that of the floating inputs.
  Cost (*cost)(Shapes inputs, DType dtype, const std::any& attrs);
};

template <class Op>
concept HasBackward = requires(Ctx& c, GradsOut gy) {
  { Op::backward(c, gy) } -> std::same_as<Grads>;
};
template <class Op>
concept DeclaresNoGradient = requires {
  { Op::kNoGradient } -> std::convertible_to<NonDifferentiable>;
};

/// An op is a struct with Attrs, info, forward, cost and either backward or kNoGradient: leaving the gradient
/// out does not compile.
template <class Op>
concept IsOp = requires(Ctx& c, In in, const typename Op::Attrs& attrs, Shapes shapes, DType dtype) {
  { Op::info } -> std::convertible_to<OpInfo>;
  { Op::forward(c, in, attrs) } -> std::same_as<Outs>;
  { Op::cost(shapes, dtype, attrs) } -> std::same_as<Cost>;
}
&&(HasBackward<Op> != DeclaresNoGradient<Op>);

template <IsOp Op>
const OpEntry& entry_of() {
  static const OpEntry entry = [] {
    OpEntry e{Op::info, Contract(Op::info.contract), nullptr, nullptr, nullptr, nullptr};
    e.forward = [](Ctx& c, In in, const std::any& attrs) {
      return Op::forward(c, in, *std::any_cast<typename Op::Attrs>(&attrs));
    };
    if constexpr (HasBackward<Op>)
      e.backward = Op::backward;
    else
      e.no_gradient_because = Op::kNoGradient.because;
    e.cost = [](Shapes s, DType dtype, const std::any& attrs) {
      return Op::cost(s, dtype, *std::any_cast<typename Op::Attrs>(&attrs));
    };
    return e;
  }();
  return entry;
}

}  // namespace occam
