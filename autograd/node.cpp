#include "autograd/node.h"

#include "core/check.h"

namespace occam {

namespace {

/// End of a path: adds what arrives into a leaf's gradient.
class AccumulateGrad : public Node {
 public:
  explicit AccumulateGrad(const Tensor& leaf) : leaf_(leaf.impl_ptr()) {
    DType dtype = leaf.dtype() == DType::f64 ? DType::f64 : DType::f32;
    outputs.push_back({leaf.shape(), dtype, leaf.device()});
    sequence = UINT64_MAX;
  }
  const char* name() const override { return "accumulate_grad"; }
  std::vector<Tensor> backward(const std::vector<Tensor>& gy) override {
    auto leaf = leaf_.lock();
    if (leaf == nullptr || !leaf->autograd || !gy[0]) return {};
    AutogradMeta& meta = *leaf->autograd;
    // Taken over only when the engine's handle is the last one on the memory.
    bool sole =
        gy[0].is_contiguous() && gy[0].impl_ptr().use_count() == 1 && gy[0].impl().storage.use_count() == 1;
    if (meta.grad)
      meta.grad.add_(raw::contiguous(gy[0]));
    else
      meta.grad = sole ? gy[0] : raw::clone(gy[0]);
    if (meta.post_accumulate) meta.post_accumulate(meta.grad);
    return {};
  }

 private:
  std::weak_ptr<TensorImpl> leaf_;
};

}  // namespace

Node::~Node() {
  std::vector<std::shared_ptr<Node>> owned;
  auto take_edges = [&owned](Node& node) {
    for (Edge& edge : node.edges)
      if (edge.node) owned.push_back(std::move(edge.node));
  };
  take_edges(*this);
  while (!owned.empty()) {
    std::shared_ptr<Node> last = std::move(owned.back());
    owned.pop_back();
    if (last.use_count() == 1) take_edges(*last);
  }
}

void set_requires_grad(const Tensor& t, bool wanted) {
  auto& meta = t.impl().autograd;
  OCCAM_CHECK(!meta || meta->leaf, ErrorKind::internal, "requires_grad of an op's result cannot be set ({})",
              t.str());
  if (!wanted) {
    meta.reset();
    return;
  }
  OCCAM_CHECK(is_floating(t.dtype()), ErrorKind::internal, "a {} tensor has no gradient", name_of(t.dtype()));
  if (meta) return;
  meta = std::make_shared<AutogradMeta>();
  meta->leaf = true;
  meta->node = std::make_shared<AccumulateGrad>(t);
}

bool requires_grad(const Tensor& t) { return t.defined() && t.impl().autograd != nullptr; }

Tensor grad_of(const Tensor& t) { return requires_grad(t) ? t.impl().autograd->grad : Tensor(); }

void set_grad(const Tensor& t, const Tensor& grad) {
  OCCAM_CHECK(requires_grad(t) && t.impl().autograd->leaf, ErrorKind::internal, "set_grad: {} is no leaf",
              t.str());
  OCCAM_CHECK(!grad || grad.shape() == t.shape(), ErrorKind::shape, "set_grad: {} for {}", grad.str(),
              t.str());
  t.impl().autograd->grad = grad;
}

void zero_grad(const Tensor& t) {
  if (requires_grad(t)) t.impl().autograd->grad = Tensor();
}

Tensor detach(const Tensor& t) {
  auto impl = std::make_shared<TensorImpl>(t.impl());
  impl->autograd.reset();
  return Tensor(std::move(impl));
}

void share_grad(const Tensor& shadow, const Tensor& master) {
  if (!requires_grad(master)) {
    shadow.impl().autograd.reset();
    return;
  }
  OCCAM_CHECK(shadow.shape() == master.shape(), ErrorKind::internal, "share_grad: {} for {}", shadow.str(),
              master.str());
  auto meta = std::make_shared<AutogradMeta>();
  meta->node = master.impl().autograd->node;
  shadow.impl().autograd = std::move(meta);
}

}  // namespace occam
