#include "ops/adamw/op.h"

#include <algorithm>
#include <cmath>

#include "autograd/node.h"
#include "core/grad_mode.h"
#include "core/trace.h"
#include "ops/adamw/kernel.h"
#include "ops/op.h"
#if OCCAM_CUDA
#include "core/cuda/backend.h"
#endif

namespace occam {

namespace {

using kernels::UpdateChunk;

void bump(const Tensor& t) {
  if (t) t.impl().storage->bump_version();
}

void check_slot(const UpdateSlot& s) {
  for (const Tensor* t : {&s.grad, &s.first, &s.second})
    OCCAM_CHECK(!*t || (t->shape() == s.param.shape() && t->dtype() == s.param.dtype() && t->is_contiguous()),
                ErrorKind::internal, "optimiser: {} beside parameter {}", t->str(), s.param.str());
}

std::vector<uint8_t> chunk_bytes(const std::vector<UpdateSlot>& slots) {
  std::vector<UpdateChunk> chunks;
  auto at = [](const Tensor& t, int64_t offset) { return t ? t.data<float>() + offset : nullptr; };
  for (const UpdateSlot& s : slots) {
    check_slot(s);
    for (int64_t start = 0, n = s.param.numel(); start < n; start += kernels::kUpdateChunk)
      chunks.push_back({at(s.param, start), at(s.first, start), at(s.second, start), at(s.grad, start),
                        s.shadow ? s.shadow.data<bf16>() + start : nullptr,
                        std::min(kernels::kUpdateChunk, n - start), float(s.weight_decay)});
  }
  std::vector<uint8_t> bytes(chunks.size() * sizeof(UpdateChunk));
  std::copy_n(reinterpret_cast<const uint8_t*>(chunks.data()), bytes.size(), bytes.data());
  return bytes;
}

[[maybe_unused]] const UpdateChunk* chunks_of(const UpdateTable::List& list) {
  return static_cast<const UpdateChunk*>(list.chunks);
}

/// f<type>(slot, first element, last + 1) for pieces of the slots on the CPU, which threads share.
template <class F>
void each_on_cpu(const std::vector<UpdateSlot>& slots, F&& f) {
  constexpr int64_t kPiece = 4096;
  std::vector<std::pair<const UpdateSlot*, int64_t>> pieces;
  for (const UpdateSlot& s : slots) {
    check_slot(s);
    dispatch_float(s.param.dtype(), []<class T>() {});  // other types are refused here, where that may throw
    for (int64_t first = 0; first < s.param.numel(); first += kPiece) pieces.emplace_back(&s, first);
  }
#pragma omp parallel for schedule(static) if (pieces.size() > 4)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto [slot, first] = pieces[i];
    const int64_t last = std::min(first + kPiece, slot->param.numel());
    dispatch_float(slot->param.dtype(), [&]<class T>() { f.template operator()<T>(*slot, first, last); });
  }
  for (const UpdateSlot& s : slots) {
    if (!s.shadow) continue;
    NoGrad no_grad;
    detach(s.shadow).copy_(detach(s.param));
  }
}

void bump_all(const std::vector<UpdateSlot>& slots) {
  for (const UpdateSlot& s : slots) bump(s.param), bump(s.first), bump(s.second), bump(s.shadow);
}

/// Work of an update, by element.
Work work_of(const std::vector<UpdateSlot>& slots, double flops, double bytes) {
  Work w;
  for (const UpdateSlot& s : slots) {
    const double n = double(s.param.numel());
    w.flops += flops * n;
    w.bytes += (bytes + (s.shadow ? 2 : 0)) * n;
  }
  return w;
}

}  // namespace

UpdateTable::List UpdateTable::of(const std::vector<UpdateSlot>& slots) {
  if (slots.empty()) return {};
  [[maybe_unused]] const Device device = slots[0].param.device();
  std::vector<uint8_t> bytes = chunk_bytes(slots);
  const auto count = int64_t(bytes.size() / sizeof(UpdateChunk));
  [[maybe_unused]] Sent* sent = &eager_;
  OCCAM_ON_CUDA({
    const bool capturing = cuda::is_capturing(current_stream(device).handle);
    // Memory of a captured list comes from before the capture: inside, the graph's own work could share it.
    if (!captured_.on_device || size_t(captured_.on_device.numel()) < bytes.size()) {
      OCCAM_CHECK(!capturing, ErrorKind::internal, "an optimiser's first step cannot be captured");
      captured_.on_device = empty({int64_t(bytes.size())}, {DType::u8, device});
    }
    if (capturing) {
      sent = &captured_;
      cuda::memcpy_now(sent->on_device.data_ptr(), bytes.data(), bytes.size(), device.index);
    } else if (bytes != sent->bytes) {
      sent->on_device = from_vector(bytes, {int64_t(bytes.size())}, device);
    }
  });
  sent->bytes = std::move(bytes);
  return {sent->on_device.data_ptr(), count};
}

StepScalars::StepScalars(Device device) : values(zeros({4}, {DType::f32, device})) {}

void StepScalars::set_learning_rate(double lr) { raw::slice(values, 0, 0, 1).fill_(lr); }

void gradient_norm(const std::vector<UpdateSlot>& slots, StepScalars& scalars, UpdateTable& table) {
  TraceSpan span("gradient_norm", scalars.values.device(), Phase::update);
  if (span) {
    Work w;
    for (const UpdateSlot& s : slots)
      w.flops += 2 * double(s.grad.numel()), w.bytes += 4 * double(s.grad.numel());
    span.set_work(w);
  }
  if (scalars.values.is_cuda()) {
    OCCAM_ON_CUDA({
      UpdateTable::List list = table.of(slots);
      Tensor partial = empty({list.count}, options_of(scalars.values));
      kernels::gradient_norm(chunks_of(list), list.count, partial.data<float>(), scalars.values.data<float>(),
                             current_stream(scalars.values.device()).handle);
    });
    return;
  }
  double squares = 0;
  for (const UpdateSlot& s : slots)
    dispatch_float(s.grad.dtype(), [&]<class T>() {
      const T* g = s.grad.data<T>();
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < s.grad.numel(); ++i) sum += double(g[i]) * double(g[i]);
      squares += sum;
    });
  float* v = scalars.values.data<float>();
  v[2] = float(std::sqrt(squares));
  v[3] = std::isfinite(squares) ? 0.0f : 1.0f;
  if (std::isfinite(squares)) v[1] += 1;
}

void adamw_update(const std::vector<UpdateSlot>& slots, const StepScalars& scalars, const AdamWOptions& o,
                  double clip, UpdateTable& table) {
  TraceSpan span("adamw", scalars.values.device(), Phase::update);
  if (span) span.set_work(work_of(slots, 15, 28));
  bump_all(slots);
  if (scalars.values.is_cuda()) {
    OCCAM_ON_CUDA({
      UpdateTable::List list = table.of(slots);
      kernels::adamw(chunks_of(list), list.count, scalars.values.data<float>(),
                     kernels::AdamWNumbers<float>(o.beta1, o.beta2, o.eps), float(clip),
                     current_stream(scalars.values.device()).handle);
    });
    return;
  }
  const float* v = scalars.values.data<float>();
  if (v[3] != 0) return;
  each_on_cpu(slots, [&]<class T>(const UpdateSlot& s, int64_t first, int64_t last) {
    kernels::AdamWNumbers<T> numbers(o.beta1, o.beta2, o.eps);
    T lr = T(v[0]), factor = kernels::clip_factor(T(v[2]), T(clip));
    T c1 = kernels::bias_correction(numbers.log1, T(v[1])),
      c2 = kernels::bias_correction(numbers.log2, T(v[1]));
    T *p = s.param.data<T>(), *m = s.first.data<T>(), *q = s.second.data<T>();
    const T* g = s.grad.data<T>();
#pragma omp simd
    for (int64_t i = first; i < last; ++i)
      kernels::adamw_element(p[i], m[i], q[i], g[i] * factor, lr, T(s.weight_decay), numbers, c1, c2);
  });
}

void sgd_update(const std::vector<UpdateSlot>& slots, const StepScalars& scalars, double momentum,
                double clip, UpdateTable& table) {
  TraceSpan span("sgd", scalars.values.device(), Phase::update);
  if (span) span.set_work(work_of(slots, 6, 20));
  bump_all(slots);
  if (scalars.values.is_cuda()) {
    OCCAM_ON_CUDA({
      UpdateTable::List list = table.of(slots);
      kernels::sgd(chunks_of(list), list.count, scalars.values.data<float>(), float(momentum), float(clip),
                   current_stream(scalars.values.device()).handle);
    });
    return;
  }
  const float* v = scalars.values.data<float>();
  if (v[3] != 0) return;
  each_on_cpu(slots, [&]<class T>(const UpdateSlot& s, int64_t first, int64_t last) {
    T lr = T(v[0]), factor = kernels::clip_factor(T(v[2]), T(clip));
    T *p = s.param.data<T>(), *buffer = s.first.data<T>();
    const T* g = s.grad.data<T>();
#pragma omp simd
    for (int64_t i = first; i < last; ++i)
      kernels::sgd_element(p[i], buffer[i], g[i] * factor, lr, T(s.weight_decay), T(momentum));
  });
}

void ema_update(const std::vector<Tensor>& averages, const std::vector<Tensor>& values, double decay,
                UpdateTable& table) {
  OCCAM_ASSERT(averages.size() == values.size());
  std::vector<UpdateSlot> slots;
  for (size_t i = 0; i < averages.size(); ++i) {
    slots.push_back({.param = averages[i], .grad = values[i]});
    bump(averages[i]);
  }
  if (slots.empty()) return;
  TraceSpan span("ema", averages[0].device(), Phase::update);
  if (span) span.set_work(work_of(slots, 3, 12));
  if (averages[0].is_cuda()) {
    OCCAM_ON_CUDA({
      UpdateTable::List list = table.of(slots);
      kernels::ema(chunks_of(list), list.count, float(decay), float(1 - decay),
                   current_stream(averages[0].device()).handle);
    });
    return;
  }
  each_on_cpu(slots, [&]<class T>(const UpdateSlot& s, int64_t first, int64_t last) {
    T *average = s.param.data<T>(), keep = T(decay), rest = T(1 - decay);
    const T* value = s.grad.data<T>();
#pragma omp simd
    for (int64_t i = first; i < last; ++i) average[i] = keep * average[i] + rest * value[i];
  });
}

// The updates as ops that return new tensors: for the table, the suite and the benchmarks.
namespace {

constexpr NonDifferentiable kUpdate{"an optimiser update is not part of the differentiated graph"};

/// Scalars after `updates` earlier steps, with this rate.
StepScalars scalars_for(const Tensor& p, double lr, int64_t updates) {
  StepScalars s(p.device());
  raw::slice(s.values, 0, 0, 1).fill_(lr);
  raw::slice(s.values, 0, 1, 1).fill_(double(updates));
  return s;
}

struct AdamW {
  struct Attrs {
    double lr = 1e-3, weight_decay = 0, clip = 0;
    int64_t updates = 0;
  };
  static constexpr OpInfo info{.name = "adamw", .contract = "p: n, g: n, m: n, v: n -> n, n, n"};
  static constexpr NonDifferentiable kNoGradient = kUpdate;
  static Outs forward(Ctx&, In in, const Attrs& a) {
    Tensor p = raw::clone(in[0]), m = raw::clone(in[2]), v = raw::clone(in[3]);
    StepScalars s = scalars_for(p, a.lr, a.updates);
    std::vector<UpdateSlot> slots{
        {.param = p, .grad = in[1], .first = m, .second = v, .weight_decay = a.weight_decay}};
    UpdateTable table;
    gradient_norm(slots, s, table);
    adamw_update(slots, s, {}, a.clip, table);
    return {p, m, v};
  }
  static Cost cost(Shapes in, DType, const Attrs&) {
    return {15 * double(in[0].numel()), 28 * double(in[0].numel())};
  }
};

struct Sgd {
  struct Attrs {
    double lr = 1e-3, weight_decay = 0, momentum = 0.9, clip = 0;
  };
  static constexpr OpInfo info{.name = "sgd", .contract = "p: n, g: n, m: n -> n, n"};
  static constexpr NonDifferentiable kNoGradient = kUpdate;
  static Outs forward(Ctx&, In in, const Attrs& a) {
    Tensor p = raw::clone(in[0]), m = raw::clone(in[2]);
    StepScalars s = scalars_for(p, a.lr, 0);
    std::vector<UpdateSlot> slots{{.param = p, .grad = in[1], .first = m, .weight_decay = a.weight_decay}};
    UpdateTable table;
    gradient_norm(slots, s, table);
    sgd_update(slots, s, a.momentum, a.clip, table);
    return {p, m};
  }
  static Cost cost(Shapes in, DType, const Attrs&) {
    return {6 * double(in[0].numel()), 20 * double(in[0].numel())};
  }
};

struct EmaStep {
  struct Attrs {
    double decay = 0.999;
  };
  static constexpr OpInfo info{.name = "ema", .contract = "average: n, value: n -> n"};
  static constexpr NonDifferentiable kNoGradient = kUpdate;
  static Outs forward(Ctx&, In in, const Attrs& a) {
    Tensor average = raw::clone(in[0]);
    UpdateTable table;
    ema_update({average}, {in[1]}, a.decay, table);
    return {average};
  }
  static Cost cost(Shapes in, DType, const Attrs&) {
    return {3 * double(in[0].numel()), 12 * double(in[0].numel())};
  }
};

}  // namespace

namespace update_ops {
std::vector<Tensor> adamw(In in, double lr, double weight_decay, double clip, int64_t updates) {
  return apply<AdamW>(in, {lr, weight_decay, clip, updates});
}
std::vector<Tensor> sgd(In in, double lr, double weight_decay, double momentum, double clip) {
  return apply<Sgd>(in, {lr, weight_decay, momentum, clip});
}
Tensor ema(const Tensor& average, const Tensor& value, double decay) {
  return apply<EmaStep>({average, value}, {decay})[0];
}
}  // namespace update_ops

OCCAM_REGISTER(adamw, AdamW, Sgd, EmaStep);

}  // namespace occam
