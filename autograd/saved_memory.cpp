#include "autograd/saved_memory.h"

#include <vector>

#include "autograd/node.h"

namespace occam {

int64_t saved_bytes(std::span<const Tensor> outputs, const std::unordered_set<const Storage*>& known) {
  std::unordered_set<const Storage*> counted = known;
  std::unordered_set<const Node*> seen;
  std::vector<const Node*> nodes;
  auto visit = [&](const Node* node) {
    if (node != nullptr && seen.insert(node).second) nodes.push_back(node);
  };
  for (const Tensor& t : outputs)
    if (requires_grad(t)) visit(t.impl().autograd->node.get());
  int64_t bytes = 0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    nodes[i]->each_saved([&](const Tensor& t) {
      const Storage* storage = t.impl().storage.get();
      if (counted.insert(storage).second) bytes += int64_t(storage->bytes());
    });
    for (const Edge& edge : nodes[i]->edges) visit(edge.node.get());
  }
  return bytes;
}

}  // namespace occam
