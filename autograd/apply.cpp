#include "autograd/apply.h"

#include <atomic>

#include "autograd/node.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "core/scope.h"
#include "core/trace.h"

namespace occam {

namespace {

thread_local OpObserver* observer = nullptr;
std::atomic<uint64_t> last_sequence{0};

bool is_half(DType dtype) { return dtype == DType::bf16 || dtype == DType::f16; }

double bytes_of(const Tensor& t) { return t ? double(t.numel()) * double(size_of(t.dtype())) : 0; }

Device device_of(In inputs) {
  for (const Tensor& t : inputs)
    if (t) return t.device();
  return kCPU;
}

/// Device and dtype rules; returns the dtype shared by the floating inputs (f32 when there is none).
DType check_inputs(const OpEntry& entry, In inputs) {
  const Tensor* first = nullptr;
  const Tensor* first_float = nullptr;
  size_t first_float_at = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& t = inputs[i];
    if (!t) continue;
    if (first == nullptr) first = &t;
    OCCAM_CHECK(t.device() == first->device(), ErrorKind::shape,
                "{}: input {} is on {}, the others are on {}", entry.info.name, entry.contract.input(i).name,
                t.device().str(), first->device().str());
    if (!is_floating(t.dtype())) continue;
    if (first_float == nullptr) first_float = &t, first_float_at = i;
    OCCAM_CHECK(entry.info.cast == Cast::any || t.dtype() == first_float->dtype(), ErrorKind::shape,
                "{}: {} is {} but {} is {}\n  hint      convert one with cast()", entry.info.name,
                entry.contract.input(first_float_at).name, name_of(first_float->dtype()),
                entry.contract.input(i).name, name_of(t.dtype()));
  }
  return first_float ? first_float->dtype() : DType::f32;
}

}  // namespace

uint64_t next_sequence() { return last_sequence.fetch_add(1) + 1; }

OpObserver::OpObserver() : previous_(observer) { observer = this; }
OpObserver::~OpObserver() { observer = previous_; }
void OpObserver::tell_backward(std::span<const Tensor> outputs) {
  for (OpObserver* o = observer; o != nullptr; o = o->previous_) o->before_backward(outputs);
}

void Ctx::save(std::initializer_list<Tensor> tensors) {
  if (!recording_) return;
  for (const Tensor& t : tensors) saved_.push_back(t ? Saved{detach(t), t.version()} : Saved{});
}

Tensor Ctx::saved(size_t i) const {
  const Saved& s = saved_.at(i);
  OCCAM_CHECK(
      !s.tensor || s.tensor.version() == s.version, ErrorKind::internal,
      "{}: a tensor saved for backward ({}) was modified in place: its version is {}, it was saved at {}",
      entry_->info.name, s.tensor.str(), s.tensor.version(), s.version);
  return s.tensor;
}

class OpNode : public Node {
 public:
  OpNode(const OpEntry& entry, Ctx ctx, bool upcast) : entry_(entry), ctx_(std::move(ctx)), upcast_(upcast) {}
  const char* name() const override { return entry_.info.name; }
  void each_saved(const std::function<void(const Tensor&)>& fn) const override {
    for (const Saved& s : ctx_.saved_)
      if (s.tensor) fn(s.tensor);
  }
  void release() override {
    ctx_.saved_.clear();
    ctx_.released_ = true;
  }
  std::vector<Tensor> backward(const std::vector<Tensor>& gy) override {
    Scope scope((path.empty() ? std::string(entry_.info.name) : path) + " (backward)");
    OCCAM_CHECK(entry_.backward != nullptr, ErrorKind::internal,
                "{}: a gradient reached an op without one: {}", entry_.info.name, entry_.no_gradient_because);
    OCCAM_CHECK(!ctx_.released_, ErrorKind::internal, "{}: backward ran already and freed what it had saved",
                entry_.info.name);
    TraceSpan span(entry_.info.name, device_of(gy), Phase::backward);
    std::vector<Tensor> cotangents;
    for (const Tensor& g : gy) {
      Tensor c = g && upcast_ ? raw::to(g, DType::f32) : g;
      cotangents.push_back(c && entry_.info.layout == Layout::contiguous ? raw::contiguous(c) : c);
    }
    Grads gradients = entry_.backward(ctx_, cotangents);
    if (span) span.set_work(work(cotangents, gradients));
    return gradients;
  }

 private:
  /// A product has two of its size behind it, one for each factor that wants a gradient; other ops are
  /// counted alike. Bytes: what comes in, what was saved and what goes out, unless all that is handed
  /// through.
  Work work(const std::vector<Tensor>& cotangents, const Grads& gradients) const {
    std::vector<Shape> shapes;
    DType dtype = DType::f32;
    double wanted = 0, factors = 0;
    for (const Ctx::InputMeta& input : ctx_.inputs_) {
      shapes.push_back(input.present ? input.shape : Shape{0});
      if (!input.present || !is_floating(input.dtype)) continue;
      if (factors == 0) dtype = input.dtype;
      if (input.shape.rank() < 2 && factors > 0) continue;  // biases
      ++factors, wanted += input.needs_grad;
    }
    Work w{factors > 0 ? 2 * wanted / factors * entry_.cost(shapes, dtype, ctx_.attrs_).flops : 0, 0};
    for (const Tensor& t : gradients) {
      bool passed_through = false;  // a view of what came in, as of a reshape or a sum
      for (const Tensor& g : cotangents) passed_through |= t && g && t.impl().storage == g.impl().storage;
      if (!passed_through) w.bytes += bytes_of(t);
    }
    if (w.bytes == 0) return w;
    for (const Tensor& t : cotangents) w.bytes += bytes_of(t);
    for (const Saved& s : ctx_.saved_) w.bytes += bytes_of(s.tensor);
    return w;
  }

  const OpEntry& entry_;
  Ctx ctx_;
  bool upcast_;  // forward computed bf16 or f16 inputs in f32 on the CPU
};

Outs run(const OpEntry& entry, In inputs, std::any attrs) {
  std::vector<const Shape*> shapes;
  for (const Tensor& t : inputs) shapes.push_back(t ? &t.shape() : nullptr);
  Contract::Bindings bindings = entry.contract.bind(entry.info.name, shapes, entry.info.hint);
  DType dtype = check_inputs(entry, inputs);
  TraceSpan span(entry.info.name, device_of(inputs));

  Ctx ctx;
  ctx.entry_ = &entry;
  ctx.attrs_ = std::move(attrs);
  bool tracked = false;
  if (grad_enabled())
    for (const Tensor& t : inputs) tracked |= requires_grad(t);
  ctx.recording_ = tracked && entry.backward != nullptr;

  NoGrad no_grad;
  std::vector<Tensor> args;
  bool upcast = false;
  for (const Tensor& t : inputs) {
    Ctx::InputMeta meta;
    Tensor arg = t;
    if (t) {
      meta = {t.shape(), t.dtype(), t.dtype(), t.dtype(), t.device(), tracked && requires_grad(t), true};
      if (meta.needs_grad) {
        const AutogradMeta& a = *t.impl().autograd;
        meta.wanted = a.node->outputs[size_t(a.output)].dtype;
      }
      if (t.is_cpu() && is_half(t.dtype())) {
        upcast = true;
        arg = raw::to(t, DType::f32);
        meta.dtype = DType::f32;
      }
      if (entry.info.layout == Layout::contiguous) arg = raw::contiguous(arg);
    }
    ctx.inputs_.push_back(meta);
    args.push_back(std::move(arg));
  }
  const std::any kept_attrs = ctx.attrs_;
  Outs outputs = entry.forward(ctx, args, kept_attrs);

  shapes.clear();
  for (Tensor& t : outputs) {
    // Rounded once, here: the kernels computed in f32.
    if (upcast && t && t.dtype() == DType::f32 && entry.info.cast == Cast::same) t = raw::to(t, dtype);
    shapes.push_back(t ? &t.shape() : nullptr);
  }
  entry.contract.check_outputs(entry.info.name, std::move(bindings), shapes);
  if (observer != nullptr || span) {
    std::vector<Shape> in_shapes;
    for (const Tensor& t : inputs) in_shapes.push_back(t ? t.shape() : Shape{0});
    Cost cost = entry.cost(in_shapes, dtype, kept_attrs);
    span.set_work({cost.flops, cost.bytes});
    for (OpObserver* o = observer; o != nullptr; o = o->previous_) o->after(entry, inputs, outputs, cost);
  }
  if (!tracked) return outputs;

  auto node = std::make_shared<OpNode>(entry, std::move(ctx), upcast);
  node->sequence = next_sequence();
  node->path = Scope::path();
  for (const Tensor& t : inputs) {
    if (requires_grad(t))
      node->edges.push_back({t.impl().autograd->node, t.impl().autograd->output});
    else
      node->edges.push_back({});
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    Tensor& t = outputs[i];
    if (!t) {
      node->outputs.push_back({});
      continue;
    }
    node->outputs.push_back({t.shape(), t.dtype(), t.device()});
    if (!is_floating(t.dtype())) continue;
    // An op may hand an input through; its output must be a tensor of its own.
    for (const Tensor& in : inputs)
      if (in && t.is_same(in)) t = detach(t);
    auto meta = std::make_shared<AutogradMeta>();
    meta->node = node;
    meta->output = int(i);
    t.impl().autograd = std::move(meta);
  }
  return outputs;
}

}  // namespace occam
