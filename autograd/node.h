#pragma once
// The graph: a node per recorded op call, edges to the producers of its inputs.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace occam {

class Node;

struct Edge {
  std::shared_ptr<Node> node;  // null: no gradient wanted
  int output = 0;              // which output of `node`
};

class Node {
 public:
  struct OutputMeta {
    Shape shape;
    DType dtype = DType::f32;  // dtype of the gradient
    Device device;
  };
  /// Takes the graph behind it down in a loop: a long chain must not need a deep stack.
  virtual ~Node();
  virtual const char* name() const = 0;
  /// Gradients of the inputs (one an edge) from gradients of the outputs (undefined = zero).
  virtual std::vector<Tensor> backward(const std::vector<Tensor>& gy) = 0;
  /// Frees what was saved; called once backward has run.
  virtual void release() {}
  /// Every tensor kept for backward.
  virtual void each_saved(const std::function<void(const Tensor&)>& fn) const {}

  std::vector<Edge> edges;
  std::vector<OutputMeta> outputs;
  std::string path;       // scope path at the forward call
  uint64_t sequence = 0;  // later nodes run first
};

/// Number of a new node; nodes of one thread are numbered in the order of their making.
uint64_t next_sequence();

/// Gradient record of a tensor: of a leaf (a parameter) or of an op's output.
struct AutogradMeta {
  std::shared_ptr<Node> node;  // the producer; for a leaf its accumulator
  int output = 0;
  bool leaf = false;
  Tensor grad;                                   // leaf only
  std::function<void(Tensor&)> post_accumulate;  // leaf only: called after each accumulation (data parallel)
};

/// Marks a leaf whose gradients are to be kept (in f64 for f64, else in f32). Throws for an op's output or a
/// non-floating dtype.
void set_requires_grad(const Tensor& t, bool requires_grad);
/// True for a leaf so marked and for results that depend on one.
bool requires_grad(const Tensor& t);
/// Gradient of a leaf; undefined before the first backward.
Tensor grad_of(const Tensor& t);
void set_grad(const Tensor& t, const Tensor& grad);
void zero_grad(const Tensor& t);
/// An alias without gradient record.
Tensor detach(const Tensor& t);
/// Makes `shadow` (same values in a smaller dtype) send its gradients to the leaf `master`.
void share_grad(const Tensor& shadow, const Tensor& master);

}  // namespace occam
