#include <omp.h>

#include <algorithm>
#include <cmath>

#include "autograd/engine.h"
#include "autograd/gradcheck.h"
#include "autograd/node.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "core/replay.h"
#include "suite.h"

namespace occam::suite {

namespace {

using spec::Arrays;
using spec::Sample;
using spec::Spec;

std::vector<double> values_of(const Tensor& t) { return t ? t.to_vector<double>() : std::vector<double>(); }

Arrays to_arrays(const std::vector<Tensor>& tensors) {
  Arrays arrays;
  for (const Tensor& t : tensors) {
    spec::Array a;
    if (t) a.shape = t.shape(), a.v = detach(t).to_vector<double>();
    arrays.push_back(std::move(a));
  }
  return arrays;
}

bool wants_any_grad(const Sample& s) {
  return s.differentiable && std::any_of(s.inputs.begin(), s.inputs.end(), [](const spec::Input& i) {
           return i.wants_grad && is_floating(i.dtype) && !i.is_absent;
         });
}

/// Error model. f32 (or f64) accumulation over `length` terms; for bf16 the result is rounded once on the
/// CPU, and on a GPU as often as the spec derives. `passes`: 2 for gradients, which use rounded results of
/// the forward pass.
Tolerance tolerance_for(const Sample& s, DType dtype, Device device, double length, double passes) {
  double terms = passes > 1 ? s.gradient_terms : s.forward_terms;
  if (dtype == DType::f64) return {unit_roundoff(DType::f64), length, 16 * s.condition, 0, terms};
  Tolerance t{unit_roundoff(DType::f32), length, 8 * passes * s.condition, 0, terms};
  if (dtype == DType::bf16)
    t.extra_relative = unit_roundoff(dtype) * (device.is_cpu() ? 1.01 : s.bf16_factor * passes);
  return t;
}

std::string forward_against_naive(const Spec& spec, const Sample& s, DType dtype, Device device) {
  if (dtype == DType::bf16 && !s.has_half) return "skip: not used in bf16";
  NoGrad no_grad;
  std::vector<Tensor> inputs = make_inputs(spec, s, dtype, device, false);
  Arrays want = s.naive(to_arrays(inputs));
  std::vector<Tensor> got = s.call(inputs);
  if (got.size() != want.size())
    return fmt::format("{} outputs, the naive form has {}", got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(got[i].shape() == want[i].shape))
      return fmt::format("output {} is {}, the naive form gives {}", i, got[i].shape().str(),
                         want[i].shape.str());
    std::string e = compare(values_of(got[i]), want[i].v, tolerance_for(s, dtype, device, s.length, 1));
    if (!e.empty()) return fmt::format("output {}: {}", i, e);
  }
  return "";
}

/// Gradients in `dtype` on `device` against f64 ones on the CPU from the same (rounded) values.
std::string gradients_against_f64(const Spec& spec, const Sample& s, DType dtype, Device device) {
  if (!wants_any_grad(s)) return "skip: not differentiable";
  if (dtype == DType::bf16 && !s.has_half) return "skip: not used in bf16";
  std::vector<Tensor> inputs = make_inputs(spec, s, dtype, device);
  std::vector<Tensor> exact;
  for (const Tensor& x : inputs) {
    Tensor copy = x ? raw::to(detach(x), kCPU) : x;
    if (copy && is_floating(copy.dtype())) {
      copy = raw::clone(raw::to(copy, DType::f64));
      if (requires_grad(x)) set_requires_grad(copy, true);
    }
    exact.push_back(copy);
  }
  Result got = run_sample(s, s.call, inputs), want = run_sample(s, s.call, exact);
  double outputs = 0;
  for (const Tensor& y : want.outputs) outputs += double(y.numel());
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!want.grads[i] && !got.grads[i]) continue;
    if (!got.grads[i]) return fmt::format("input {} received no gradient", i);
    double length = s.length * std::max(1.0, outputs / std::max(1.0, double(inputs[i].numel())));
    std::string e = compare(values_of(got.grads[i]), values_of(want.grads[i]),
                            tolerance_for(s, dtype, device, length, 2));
    if (!e.empty()) return fmt::format("gradient of input {}: {}", i, e);
  }
  return "";
}

std::string numeric_gradient(const Spec& spec, const Sample& s) {
  if (!wants_any_grad(s)) return "skip: not differentiable";
  std::vector<Tensor> inputs = make_inputs(spec, s, DType::f64);
  double outputs = 0;
  for (const Tensor& x : inputs) outputs += x ? double(x.numel()) : 0;
  if (outputs == 0) return "skip: empty";
  return gradcheck(s.call, inputs);
}

std::string against_composite(const Spec& spec, const Sample& s) {
  if (!s.composite) return "skip: no composite";
  std::vector<Tensor> a = make_inputs(spec, s, DType::f64), b = make_inputs(spec, s, DType::f64);
  Result got = run_sample(s, s.call, a), want = run_sample(s, s.composite, b);
  Tolerance t{unit_roundoff(DType::f64), s.length, 64 * s.condition, 0, s.forward_terms + s.gradient_terms};
  for (size_t i = 0; i < got.outputs.size(); ++i)
    if (std::string e = compare(values_of(got.outputs[i]), values_of(want.outputs[i]), t); !e.empty())
      return fmt::format("output {}: {}", i, e);
  for (size_t i = 0; i < got.grads.size(); ++i) {
    t.length = s.length * std::max(1.0, double(got.outputs[0].numel()));
    if (std::string e = compare(values_of(got.grads[i]), values_of(want.grads[i]), t); !e.empty())
      return fmt::format("gradient of input {}: {}", i, e);
  }
  return "";
}

std::string same_result(const Result& got, const Result& want) {
  for (size_t i = 0; i < got.outputs.size(); ++i)
    if (std::string e = compare_bits(got.outputs[i], want.outputs[i]); !e.empty())
      return fmt::format("output {}: {}", i, e);
  for (size_t i = 0; i < got.grads.size(); ++i)
    if (std::string e = compare_bits(got.grads[i], want.grads[i]); !e.empty())
      return fmt::format("gradient of input {}: {}", i, e);
  return "";
}

/// A second backward must add to the first one's gradient.
std::string accumulates(const Spec& spec, const Sample& s, Device device) {
  if (!wants_any_grad(s)) return "skip: not differentiable";
  std::vector<Tensor> inputs = make_inputs(spec, s, DType::f32, device);
  std::vector<Tensor> once;
  for (const Tensor& g : run_sample(s, s.call, inputs).grads) once.push_back(g ? raw::clone(g) : g);
  Result twice = run_sample(s, s.call, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!once[i]) continue;
    std::vector<double> want = values_of(once[i]);
    for (double& v : want) v *= 2;
    // Atomics may make the second gradient differ by rounding; an overwrite is a factor of two.
    if (std::string e = compare(values_of(twice.grads[i]), want,
                                {unit_roundoff(DType::f32), s.length, 16 * s.condition, 0, s.gradient_terms});
        !e.empty())
      return fmt::format("gradient of input {} after two backwards: {}", i, e);
  }
  return "";
}

/// The same values behind other strides and offsets.
std::string strides_do_not_matter(const Spec& spec, const Sample& s, Device device) {
  Result want = run_sample(s, s.call, make_inputs(spec, s, DType::f32, device));
  std::vector<Tensor> inputs = make_inputs(spec, s, DType::f32, device);
  for (Tensor& x : inputs) {
    if (!x) continue;
    bool grad = requires_grad(x);
    Tensor plain = detach(x);
    Shape padded = plain.shape();
    for (int i = 0; i < padded.rank(); ++i) padded[i] += 1;
    Tensor room = zeros(padded, options_of(plain));
    if (room.rank() >= 2) room = raw::transpose(raw::clone(raw::transpose(room, 0, -1)), 0, -1);
    Tensor view = room;
    for (int i = 0; i < padded.rank(); ++i) view = raw::slice(view, i, 1, plain.size(i));
    view.copy_(plain);
    if (grad) set_requires_grad(view, true);
    x = view;
  }
  Result got = run_sample(s, s.call, inputs);
  Tolerance t{unit_roundoff(DType::f32), s.length, 8 * s.condition, 0, s.forward_terms + s.gradient_terms};
  for (size_t i = 0; i < got.outputs.size(); ++i)
    if (std::string e = compare(values_of(got.outputs[i]), values_of(want.outputs[i]), t); !e.empty())
      return fmt::format("output {} of strided inputs: {}", i, e);
  for (size_t i = 0; i < got.grads.size(); ++i)
    if (std::string e = compare(values_of(got.grads[i]), values_of(want.grads[i]), t); !e.empty())
      return fmt::format("gradient of strided input {}: {}", i, e);
  return "";
}

/// New memory full of NaN and guarded at both ends: nothing unwritten is read, nothing outside written,
/// inputs kept.
std::string memory_is_respected(const Spec& spec, const Sample& s, Device device) {
  Result want = run_sample(s, s.call, make_inputs(spec, s, DType::f32, device));
  check_red_zones();
  std::string problem;
  {
    set_alloc_test_mode({.poison = true, .red_zones = true});
    struct Off {
      ~Off() { set_alloc_test_mode({}); }
    } off;
    std::vector<Tensor> inputs = make_inputs(spec, s, DType::f32, device);
    std::vector<Tensor> kept;
    for (const Tensor& x : inputs) kept.push_back(x ? raw::clone(detach(x)) : x);
    Result got = run_sample(s, s.call, inputs);
    problem = spec.nondeterministic_reason().empty() ? same_result(got, want) : "";
    if (!problem.empty()) problem = "with poisoned memory: " + problem;
    for (size_t i = 0; problem.empty() && i < inputs.size(); ++i)
      if (std::string e = compare_bits(inputs[i] ? detach(inputs[i]) : inputs[i], kept[i]); !e.empty())
        problem = fmt::format("input {} was changed: {}", i, e);
    if (int64_t damaged = check_red_zones(); problem.empty() && damaged > 0)
      problem = fmt::format("guard bytes of {} block(s) were overwritten", damaged);
  }
  return problem;
}

std::string repeatable(const Spec& spec, const Sample& s, Device device) {
  if (!spec.nondeterministic_reason().empty()) return "skip: " + spec.nondeterministic_reason();
  Result first = run_sample(s, s.call, make_inputs(spec, s, DType::f32, device));
  int threads = omp_get_max_threads();
  omp_set_num_threads(device.is_cpu() ? 1 : threads);
  Result second = run_sample(s, s.call, make_inputs(spec, s, DType::f32, device));
  omp_set_num_threads(threads);
  std::string e = same_result(second, first);
  return e.empty() ? e : "a second run (with one thread on the CPU) differs: " + e;
}

/// Forward and backward recorded into a CUDA graph with one set of values and replayed with another.
std::string captured_equals_eager(const Spec& spec, const Sample& s, DType dtype) {
  if (dtype == DType::bf16 && !s.has_half) return "skip: not used in bf16";
  if (!spec.uncapturable_reason().empty()) return "skip: " + spec.uncapturable_reason();
  const Device gpu = cuda_device();
  constexpr uint64_t kOtherValues = 8;
  const Result want = run_sample(s, s.call, make_inputs(spec, s, dtype, gpu, true, kOtherValues));

  std::vector<Tensor> inputs = make_inputs(spec, s, dtype, gpu);
  const std::vector<Tensor> cotangents = make_cotangents(s, s.call(inputs));
  Result got;
  Replay replay(gpu);
  auto work = [&] { got = run_sample(s, s.call, inputs, &cotangents); };
  while (replay.fallback().empty() && !replay.captured()) {
    got = {};  // nothing of an eager run may be part of the recording
    for (const Tensor& x : inputs)
      if (x && requires_grad(x)) set_grad(x, Tensor());
    replay.run(work);
  }
  if (!replay.captured()) return replay.fallback();
  const std::vector<Tensor> others = make_inputs(spec, s, dtype, gpu, false, kOtherValues);
  for (size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i]) detach(inputs[i]).copy_(others[i]);
  replay.run(work);
  return same_result(got, want);
}

std::string no_grad_records_nothing(const Spec& spec, const Sample& s) {
  NoGrad no_grad;
  for (const Tensor& y : s.call(make_inputs(spec, s, DType::f32)))
    if (requires_grad(y)) return "an output computed under NoGrad requires a gradient";
  return "";
}

/// A gradient asked for alone must equal the one computed with all others.
std::string frozen_inputs(const Spec& spec, const Sample& s, Device device) {
  if (!wants_any_grad(s)) return "skip: not differentiable";
  if (!spec.nondeterministic_reason().empty()) return "skip: " + spec.nondeterministic_reason();
  Result all = run_sample(s, s.call, make_inputs(spec, s, DType::f32, device));
  for (size_t only = 0; only < s.inputs.size(); ++only) {
    if (!all.grads[only]) continue;
    std::vector<Tensor> inputs = make_inputs(spec, s, DType::f32, device);
    for (size_t i = 0; i < inputs.size(); ++i)
      if (i != only && requires_grad(inputs[i])) set_requires_grad(inputs[i], false);
    Result one = run_sample(s, s.call, inputs);
    for (size_t i = 0; i < inputs.size(); ++i)
      if (std::string e = compare_bits(one.grads[i], i == only ? all.grads[i] : Tensor()); !e.empty())
        return fmt::format("with only input {} trainable, gradient of input {}: {}", only, i, e);
  }
  return "";
}

/// An input changed after forward must be noticed, unless backward does not use it.
std::string changed_inputs_are_caught(const Spec& spec, const Sample& s) {
  if (!wants_any_grad(s)) return "skip: not differentiable";
  Result want = run_sample(s, s.call, make_inputs(spec, s, DType::f32));
  for (size_t k = 0; k < s.inputs.size(); ++k) {
    std::vector<Tensor> inputs = make_inputs(spec, s, DType::f32);
    if (!inputs[k] || inputs[k].numel() == 0) continue;
    spec::Call call = [&](const std::vector<Tensor>& x) {
      std::vector<Tensor> y = s.call(x);
      NoGrad no_grad;
      detach(x[k]).fill_(is_floating(x[k].dtype()) ? 0.37 : 0);
      return y;
    };
    try {
      Result got = run_sample(s, call, inputs);
      for (size_t i = 0; i < inputs.size(); ++i)
        if (std::string e = compare_bits(got.grads[i], want.grads[i]); !e.empty())
          return fmt::format("input {} changed after forward, silently wrong gradient of input {}: {}", k, i,
                             e);
    } catch (const Error& e) {
      if (std::string(e.what()).find("modified in place") == std::string::npos) throw;
    }
  }
  return "";
}

/// Each output used alone equals a zero cotangent for the others.
std::string unused_outputs(const Spec& spec, const Sample& s, Device device) {
  if (!wants_any_grad(s)) return "skip: not differentiable";
  size_t count = s.call(make_inputs(spec, s, DType::f32, device)).size();
  if (count < 2) return "skip: one output";
  for (size_t only = 0; only < count; ++only) {
    auto grads = [&](bool zero_others) {
      std::vector<Tensor> inputs = make_inputs(spec, s, DType::f32, device), outputs = s.call(inputs), roots,
                          gy;
      for (size_t i = 0; i < count; ++i) {
        if (!requires_grad(outputs[i]) || (i != only && !zero_others)) continue;
        roots.push_back(outputs[i]);
        gy.push_back(full(outputs[i].shape(), i == only ? 0.75 : 0, options_of(outputs[i])));
      }
      if (!roots.empty()) backward(roots, gy);
      std::vector<std::vector<double>> result;
      for (const Tensor& x : inputs)
        result.push_back(x && grad_of(x) ? values_of(grad_of(x)) : std::vector<double>());
      return result;
    };
    auto a = grads(false), b = grads(true);
    for (size_t i = 0; i < a.size(); ++i) {
      if (a[i].empty()) a[i].assign(b[i].size(), 0.0);
      if (std::string e = compare(
              a[i], b[i], {unit_roundoff(DType::f32), s.length, 8 * s.condition, 0, s.gradient_terms});
          !e.empty())
        return fmt::format("only output {} used, gradient of input {}: {}", only, i, e);
    }
  }
  return "";
}

}  // namespace

const std::vector<Check>& all_checks() {
  static const std::vector<Check> checks = [] {
    std::vector<Check> list;
    auto cpu = [&](const char* name, auto f) { list.push_back({name, false, f}); };
    auto gpu = [&](const char* name, auto f) {
      list.push_back({name, true, [f](const Spec& spec, const Sample& s) -> std::string {
                        if (!cuda_available()) return "skip: no GPU";
                        if (!s.has_cuda) return "skip: CPU only";
                        return f(spec, s);
                      }});
    };
    cpu("naive_f64", [](auto& p, auto& s) { return forward_against_naive(p, s, DType::f64, kCPU); });
    cpu("naive_f32", [](auto& p, auto& s) { return forward_against_naive(p, s, DType::f32, kCPU); });
    cpu("naive_bf16", [](auto& p, auto& s) { return forward_against_naive(p, s, DType::bf16, kCPU); });
    cpu("gradcheck", numeric_gradient);
    cpu("grad_f32", [](auto& p, auto& s) { return gradients_against_f64(p, s, DType::f32, kCPU); });
    cpu("grad_bf16", [](auto& p, auto& s) { return gradients_against_f64(p, s, DType::bf16, kCPU); });
    cpu("composite", against_composite);
    cpu("accumulate", [](auto& p, auto& s) { return accumulates(p, s, kCPU); });
    cpu("strides", [](auto& p, auto& s) { return strides_do_not_matter(p, s, kCPU); });
    cpu("memory", [](auto& p, auto& s) { return memory_is_respected(p, s, kCPU); });
    cpu("repeat", [](auto& p, auto& s) { return repeatable(p, s, kCPU); });
    cpu("no_grad", no_grad_records_nothing);
    cpu("frozen", [](auto& p, auto& s) { return frozen_inputs(p, s, kCPU); });
    cpu("changed", changed_inputs_are_caught);
    cpu("unused", [](auto& p, auto& s) { return unused_outputs(p, s, kCPU); });
    gpu("cuda_f32", [](auto& p, auto& s) { return forward_against_naive(p, s, DType::f32, cuda_device()); });
    gpu("cuda_bf16",
        [](auto& p, auto& s) { return forward_against_naive(p, s, DType::bf16, cuda_device()); });
    gpu("cuda_grad_f32",
        [](auto& p, auto& s) { return gradients_against_f64(p, s, DType::f32, cuda_device()); });
    gpu("cuda_grad_bf16",
        [](auto& p, auto& s) { return gradients_against_f64(p, s, DType::bf16, cuda_device()); });
    gpu("cuda_accumulate", [](auto& p, auto& s) { return accumulates(p, s, cuda_device()); });
    gpu("cuda_strides", [](auto& p, auto& s) { return strides_do_not_matter(p, s, cuda_device()); });
    gpu("cuda_memory", [](auto& p, auto& s) { return memory_is_respected(p, s, cuda_device()); });
    gpu("cuda_repeat", [](auto& p, auto& s) { return repeatable(p, s, cuda_device()); });
    gpu("cuda_captured_f32", [](auto& p, auto& s) { return captured_equals_eager(p, s, DType::f32); });
    gpu("cuda_captured_bf16", [](auto& p, auto& s) { return captured_equals_eager(p, s, DType::bf16); });
    gpu("cuda_frozen", [](auto& p, auto& s) { return frozen_inputs(p, s, cuda_device()); });
    gpu("cuda_unused", [](auto& p, auto& s) { return unused_outputs(p, s, cuda_device()); });
    return list;
  }();
  return checks;
}

const Check& check_named(const std::string& name) {
  for (const Check& c : all_checks())
    if (name == c.name) return c;
  fail(ErrorKind::internal, "no check is called " + name);
}

}  // namespace occam::suite
