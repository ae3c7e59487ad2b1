#include "autograd/engine.h"

#include <cmath>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "autograd/apply.h"
#include "autograd/node.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "core/trace.h"

namespace occam {

namespace {

thread_local int anomaly_depth = 0;

struct Pending {
  std::vector<Tensor> gradients;  // by output
  std::vector<bool> owned;        // the engine made this sum itself and may add in place
  int64_t waiting = 0;            // edges that have not delivered
};

void add_gradient(Pending& p, size_t output, const Tensor& g) {
  Tensor& sum = p.gradients[output];
  if (!sum) {
    sum = g;
    return;
  }
  if (!p.owned[output]) {
    sum = raw::clone(sum);
    p.owned[output] = true;
  }
  sum.add_(raw::contiguous(g));
}

void check_finite(const Tensor& g, const Node& node, size_t input) {
  for (double v : g.to_vector<double>())
    OCCAM_CHECK(std::isfinite(v), ErrorKind::non_finite,
                "{} backward made a {} in the gradient of its input {}{}", node.name(), v, input,
                node.path.empty() ? "" : "\n  where     " + node.path + " (backward)");
}

struct ByOrder {
  bool operator()(const Node* a, const Node* b) const { return a->sequence < b->sequence; }
};

}  // namespace

AnomalyMode::AnomalyMode() { ++anomaly_depth; }
AnomalyMode::~AnomalyMode() { --anomaly_depth; }

namespace {

/// Back-propagation up to `ends`: nodes among them are not run; what arrives at each is returned.
std::vector<Tensor> propagate(std::span<const Tensor> outputs, std::span<const Tensor> gy,
                              std::span<const Edge> ends) {
  NoGrad no_grad;
  PhaseGuard phase(Phase::backward);
  std::unordered_set<const Node*> end_nodes;
  for (const Edge& end : ends) end_nodes.insert(end.node.get());
  std::unordered_map<Node*, Pending> pending;
  std::vector<std::shared_ptr<Node>> reachable;
  auto visit = [&](const std::shared_ptr<Node>& node) {
    auto [it, fresh] = pending.try_emplace(node.get());
    if (fresh) {
      it->second.gradients.resize(node->outputs.size());
      it->second.owned.resize(node->outputs.size());
      reachable.push_back(node);
    }
    return &it->second;
  };
  for (const Tensor& output : outputs) {
    OCCAM_CHECK(requires_grad(output), ErrorKind::internal,
                "backward: {} depends on no tensor that needs a gradient", output.str());
    visit(output.impl().autograd->node);
  }
  for (size_t i = 0; i < reachable.size(); ++i) {
    Node* node = reachable[i].get();
    if (end_nodes.contains(node)) continue;
    for (const Edge& edge : node->edges)
      if (edge.node) ++visit(edge.node)->waiting;
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    const AutogradMeta& meta = *outputs[i].impl().autograd;
    const Node::OutputMeta& expected = meta.node->outputs[size_t(meta.output)];
    Tensor g = i < gy.size() ? gy[i] : Tensor();
    if (!g) {
      OCCAM_CHECK(outputs[i].numel() == 1, ErrorKind::internal,
                  "backward: {} is no scalar, so its cotangent must be given", outputs[i].str());
      g = ones(outputs[i].shape(), {expected.dtype, expected.device});
    }
    OCCAM_CHECK(g.shape() == outputs[i].shape(), ErrorKind::shape, "backward: cotangent {} for output {}",
                g.str(), outputs[i].str());
    add_gradient(pending.at(meta.node.get()), size_t(meta.output), raw::to(g, expected.dtype));
  }

  std::priority_queue<Node*, std::vector<Node*>, ByOrder> ready;
  for (const auto& node : reachable)
    if (pending.at(node.get()).waiting == 0) ready.push(node.get());
  while (!ready.empty()) {
    Node* node = ready.top();
    ready.pop();
    if (end_nodes.contains(node)) continue;
    std::vector<Tensor> gradients = std::move(pending.at(node).gradients);
    bool any = false;
    for (const Tensor& g : gradients) any |= g.defined();
    std::vector<Tensor> result;
    if (any) result = node->backward(gradients);
    gradients.clear();
    OCCAM_CHECK(!any || result.size() == node->edges.size(), ErrorKind::internal,
                "{} backward returned {} gradients for {} inputs", node->name(), result.size(),
                node->edges.size());
    for (size_t i = 0; i < node->edges.size(); ++i) {
      const Edge& edge = node->edges[i];
      if (!edge.node) continue;
      Pending& target = pending.at(edge.node.get());
      if (any && result[i]) {
        const Node::OutputMeta& expected = edge.node->outputs[size_t(edge.output)];
        OCCAM_CHECK(result[i].shape() == expected.shape && result[i].device() == expected.device,
                    ErrorKind::internal, "{} backward made {} for an input of shape {}", node->name(),
                    result[i].str(), expected.shape.str());
        if (anomaly_depth > 0) check_finite(result[i], *node, i);
        Tensor g = raw::to(result[i], expected.dtype);
        result[i] = Tensor();
        add_gradient(target, size_t(edge.output), g);
      }
      if (--target.waiting == 0) ready.push(edge.node.get());
    }
    node->release();
  }
  std::vector<Tensor> arrived(ends.size());
  for (size_t i = 0; i < ends.size(); ++i)
    if (auto it = pending.find(ends[i].node.get()); it != pending.end())
      arrived[i] = it->second.gradients[size_t(ends[i].output)];
  return arrived;
}

}  // namespace

void backward(std::span<const Tensor> outputs, std::span<const Tensor> gy) {
  OpObserver::tell_backward(outputs);
  propagate(outputs, gy, {});
}

std::vector<Tensor> gradients_at(std::span<const Tensor> outputs, std::span<const Tensor> gy,
                                 std::span<const Edge> ends) {
  return propagate(outputs, gy, ends);
}

void backward(const Tensor& output, const Tensor& gy) { backward(std::span(&output, 1), std::span(&gy, 1)); }

}  // namespace occam
