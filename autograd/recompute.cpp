#include "autograd/recompute.h"

#include <optional>
#include <unordered_set>

#include "autograd/ctx.h"
#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "core/rng.h"
#include "core/scope.h"
#include "core/trace.h"

namespace occam {

namespace {

class WithGrad {
 public:
  WithGrad() : previous_(grad_enabled()) { set_grad_enabled(true); }
  ~WithGrad() { set_grad_enabled(previous_); }

 private:
  bool previous_;
};

/// Where the graph of fn begins: stands for the producer of an input.
class Boundary : public Node {
 public:
  const char* name() const override { return "recompute"; }
  std::vector<Tensor> backward(const std::vector<Tensor>&) override {
    fail(ErrorKind::internal,
         "backward reached the beginning of a recomputed part through a tensor that left it otherwise than "
         "as a result (a hook or a tap, say)\n  fix       return it from the recomputed function, or do not "
         "recompute this part");
  }
};

/// Aliases of the inputs in a graph of their own.
std::vector<Tensor> boundaries(const std::vector<Tensor>& inputs) {
  std::vector<Tensor> out;
  for (const Tensor& x : inputs) {
    out.push_back(x ? detach(x) : x);
    if (!requires_grad(x)) continue;
    const AutogradMeta& producer = *x.impl().autograd;
    auto meta = std::make_shared<AutogradMeta>();
    meta->node = std::make_shared<Boundary>();
    meta->node->outputs = {producer.node->outputs[size_t(producer.output)]};
    out.back().impl().autograd = std::move(meta);
  }
  return out;
}

Edge edge_of(const Tensor& t) {
  if (!requires_grad(t)) return {};
  return {t.impl().autograd->node, t.impl().autograd->output};
}

/// Edges that lead out of the graph behind `results`, which was made after node number `start` (parameters,
/// and tensors that fn knew otherwise than as inputs).
std::vector<Edge> edges_out(const std::vector<Tensor>& results, const std::vector<Tensor>& inner,
                            uint64_t start) {
  std::unordered_set<const Node*> seen;
  for (const Tensor& x : inner) seen.insert(edge_of(x).node.get());
  std::vector<Node*> inside;
  std::vector<Edge> out;
  auto follow = [&](const Edge& edge) {
    Node* node = edge.node.get();
    if (node == nullptr || seen.contains(node)) return;
    if (node->sequence > start && node->sequence != UINT64_MAX) {
      seen.insert(node);
      inside.push_back(node);
      return;
    }
    for (const Edge& known : out)
      if (known.node == edge.node && known.output == edge.output) return;
    out.push_back(edge);
  };
  for (const Tensor& y : results) follow(edge_of(y));
  for (size_t i = 0; i < inside.size(); ++i)
    for (const Edge& edge : inside[i]->edges) follow(edge);
  return out;
}

class RecomputeNode : public Node {
 public:
  RecomputeNode(RecomputeFn fn, const std::vector<Tensor>& inputs, op_random::Position random)
      : fn_(std::move(fn)), random_(std::move(random)) {
    for (const Tensor& x : inputs) {
      inputs_.push_back(x ? Saved{x, x.version()} : Saved{});
      edges.push_back(edge_of(x));
    }
  }
  const char* name() const override { return "recompute"; }
  void each_saved(const std::function<void(const Tensor&)>& fn) const override {
    for (const Saved& s : inputs_)
      if (s.tensor) fn(s.tensor);
  }
  void release() override {
    inputs_.clear();
    fn_ = nullptr;
  }

  std::vector<Tensor> backward(const std::vector<Tensor>& gy) override {
    OCCAM_CHECK(fn_ != nullptr, ErrorKind::internal,
                "recompute: backward ran already and freed what it had saved");
    std::vector<Tensor> inputs, roots, cotangents;
    for (const Saved& s : inputs_) {
      OCCAM_CHECK(!s.tensor || s.tensor.version() == s.version, ErrorKind::internal,
                  "recompute: an input ({}) was modified in place: its version is {}, it was saved at {}",
                  s.tensor.str(), s.tensor.version(), s.version);
      inputs.push_back(s.tensor);
    }
    std::vector<Tensor> inner = boundaries(inputs), results = run_again(inner);
    OCCAM_CHECK(results.size() == gy.size(), ErrorKind::internal,
                "recompute: the function gave {} results, and {} when it was called again", gy.size(),
                results.size());
    for (size_t i = 0; i < results.size(); ++i) {
      if (!gy[i]) continue;
      roots.push_back(results[i]);
      cotangents.push_back(gy[i]);
    }
    results.clear();
    std::vector<Edge> ends = edges;
    for (size_t i = 0; i < inner.size(); ++i) ends[i] = edge_of(inner[i]);
    std::vector<Edge> known;
    std::vector<size_t> at;
    for (size_t i = 0; i < ends.size(); ++i)
      if (ends[i].node) known.push_back(ends[i]), at.push_back(i);
    std::vector<Tensor> arrived = gradients_at(roots, cotangents, known), gradients(edges.size());
    for (size_t i = 0; i < at.size(); ++i) gradients[at[i]] = std::move(arrived[i]);
    return gradients;
  }

 private:
  std::vector<Tensor> run_again(const std::vector<Tensor>& inputs) const {
    WithGrad with_grad;
    ScopeAt scope(path);
    PhaseGuard phase(Phase::recompute);
    op_random::Replay replay(random_);
    return fn_(inputs);
  }

  RecomputeFn fn_;
  std::vector<Saved> inputs_;
  op_random::Position random_;
};

}  // namespace

std::vector<Tensor> recompute(const RecomputeFn& fn, const std::vector<Tensor>& inputs) {
  if (!grad_enabled()) return fn(inputs);
  Device device;
  for (const Tensor& x : inputs)
    if (x) device = x.device();
  op_random::Position random = op_random::position(device);
  const uint64_t start = next_sequence();
  const std::vector<Tensor> inner = boundaries(inputs);
  // Recorded as usual and let go at once: ops choose the kernels they would choose without recomputation.
  std::vector<Tensor> results = fn(inner);
  bool tracked = false;
  for (const Tensor& y : results) tracked |= requires_grad(y);
  if (!tracked) return results;

  op_random::keep_step(random);
  auto node = std::make_shared<RecomputeNode>(fn, inputs, std::move(random));
  for (Edge& edge : edges_out(results, inner, start)) node->edges.push_back(std::move(edge));
  node->sequence = next_sequence();
  node->path = Scope::path();
  for (size_t i = 0; i < results.size(); ++i) {
    Tensor& y = results[i];
    node->outputs.push_back({});
    if (!requires_grad(y)) continue;
    const AutogradMeta& producer = *y.impl().autograd;
    node->outputs.back() = producer.node->outputs[size_t(producer.output)];
    auto meta = std::make_shared<AutogradMeta>();
    meta->node = node;
    meta->output = int(i);
    y = detach(y);
    y.impl().autograd = std::move(meta);
  }
  return results;
}

Tensor recompute(const std::function<Tensor(const Tensor&)>& fn, const Tensor& input) {
  return recompute([fn](const std::vector<Tensor>& in) { return std::vector{fn(in[0])}; },
                   std::vector{input})[0];
}

}  // namespace occam
