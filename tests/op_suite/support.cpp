#include <algorithm>
#include <cmath>
#include <cstring>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/check.h"
#include "suite.h"

namespace occam::suite {

std::vector<Tensor> make_inputs(const spec::Spec& spec, const spec::Sample& sample, DType dtype,
                                Device device, bool with_grad, uint64_t seed) {
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < sample.inputs.size(); ++i) {
    const spec::Input& input = sample.inputs[i];
    if (input.is_absent) {
      tensors.emplace_back();
      continue;
    }
    Rng rng(seed, spec.folder() + "/" + sample.name + "/" + std::to_string(i));
    std::vector<double> values(size_t(input.shape.numel()));
    for (size_t j = 0; j < values.size(); ++j) values[j] = input.value(int64_t(j), rng);
    bool floating = is_floating(input.dtype);
    Tensor t = raw::to(raw::to(from_vector(values, input.shape), floating ? dtype : input.dtype), device);
    if (floating && input.wants_grad && with_grad && sample.differentiable) set_requires_grad(t, true);
    tensors.push_back(t);
  }
  return tensors;
}

std::vector<Tensor> make_cotangents(const spec::Sample& sample, const std::vector<Tensor>& outputs) {
  std::vector<Tensor> cotangents(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i] || !requires_grad(outputs[i])) continue;
    Rng rng(11, sample.name + "/cotangent/" + std::to_string(i));
    Tensor r = raw::to(rand_normal(outputs[i].shape(), 0, 1, rng), DType::bf16);  // exact in every type
    cotangents[i] = raw::to(raw::to(r, outputs[i].dtype()), outputs[i].device());
  }
  return cotangents;
}

Result run_sample(const spec::Sample& sample, const spec::Call& call, const std::vector<Tensor>& inputs,
                  const std::vector<Tensor>* cotangents) {
  Result result;
  std::vector<Tensor> outputs = call(inputs), made, roots, wanted;
  if (!cotangents) made = make_cotangents(sample, outputs), cotangents = &made;
  for (size_t i = 0; i < outputs.size(); ++i)
    if ((*cotangents)[i]) roots.push_back(outputs[i]), wanted.push_back((*cotangents)[i]);
  if (!roots.empty()) backward(roots, wanted);
  for (const Tensor& y : outputs) result.outputs.push_back(y ? detach(y) : y);
  for (const Tensor& x : inputs) result.grads.push_back(x ? grad_of(x) : Tensor());
  return result;
}

std::string compare(const std::vector<double>& got, const std::vector<double>& want, const Tolerance& t) {
  if (got.size() != want.size()) return fmt::format("{} elements, expected {}", got.size(), want.size());
  double squares = 0;
  int64_t finite = 0;
  for (double w : want)
    if (std::isfinite(w)) squares += w * w, ++finite;
  double rms = finite ? std::sqrt(squares / double(finite)) : 0;
  double scale = t.factor * t.roundoff * std::sqrt(std::max(t.length, 1.0)) + t.extra_relative;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(want[i]) && std::isnan(got[i])) continue;
    if (got[i] == want[i]) continue;
    double allowed = scale * (rms + std::abs(want[i]) + t.terms) + 1e-38;
    if (std::abs(got[i] - want[i]) <= allowed) continue;
    return fmt::format("element {} of {}: {:.9g}, expected {:.9g}, difference {:.3g}, allowed {:.3g}", i,
                       got.size(), got[i], want[i], std::abs(got[i] - want[i]), allowed);
  }
  return "";
}

std::string compare_bits(const Tensor& got, const Tensor& want) {
  if (got.defined() != want.defined())
    return got ? "a tensor where none is expected" : "no tensor where one is expected";
  if (!got) return "";
  if (got.str() != want.str()) return fmt::format("{}, expected {}", got.str(), want.str());
  Tensor a = raw::contiguous(raw::to(detach(got), kCPU)), b = raw::contiguous(raw::to(detach(want), kCPU));
  size_t size = size_of(a.dtype());
  for (int64_t i = 0; i < a.numel(); ++i) {
    if (std::memcmp(static_cast<char*>(a.data_ptr()) + size_t(i) * size,
                    static_cast<char*>(b.data_ptr()) + size_t(i) * size, size) != 0)
      return fmt::format("element {} of {}: {:.9g}, expected the same bits as {:.9g}", i, a.numel(),
                         a.to_vector<double>()[size_t(i)], b.to_vector<double>()[size_t(i)]);
  }
  return "";
}

}  // namespace occam::suite
