#include "ops/spec.h"

#include "core/check.h"

namespace occam::spec {

size_t Array::offset(std::initializer_list<int64_t> index) const {
  OCCAM_ASSERT(int(index.size()) == shape.rank());
  int64_t at = 0;
  int axis = 0;
  for (int64_t i : index) {
    OCCAM_ASSERT(i >= 0 && i < shape[axis]);
    at = at * shape[axis++] + i;
  }
  return size_t(at);
}

Input Input::no_grad() const {
  Input copy = *this;
  copy.wants_grad = false;
  return copy;
}

Input randn(const Shape& shape, double std, double mean) {
  return {shape, [=](int64_t, Rng& rng) { return mean + std * rng.normal(); }};
}

Input uniform(const Shape& shape, double low, double high) {
  return {shape, [=](int64_t, Rng& rng) { return rng.uniform(low, high); }};
}

Input outliers(const Shape& shape, double factor) {
  return {shape, [=](int64_t, Rng& rng) {
            double value = rng.normal();
            return rng.below(16) == 0 ? factor * value : value;
          }};
}

Input integers(const Shape& shape, int64_t low, int64_t high) {
  return {shape, [=](int64_t, Rng& rng) { return double(low + rng.below(high - low)); }, DType::i64, false};
}

Input bools(const Shape& shape, double probability_of_true) {
  return {shape, [=](int64_t, Rng& rng) { return rng.bernoulli(probability_of_true) ? 1.0 : 0.0; },
          DType::bool_, false};
}

Input values(const Shape& shape, std::vector<double> v, DType dtype) {
  OCCAM_ASSERT(int64_t(v.size()) == shape.numel());
  return {shape, [v](int64_t index, Rng&) { return v[size_t(index)]; }, dtype, is_floating(dtype)};
}

Input absent() {
  Input input;
  input.is_absent = true;
  input.wants_grad = false;
  return input;
}

Sample& Spec::sample(std::string name, std::vector<Input> inputs, Call call, Naive naive) {
  for (const Sample& s : samples_)
    OCCAM_CHECK(s.name != name, ErrorKind::internal, "spec {}: two samples are called {}", folder_, name);
  Sample s;
  s.name = std::move(name);
  s.inputs = std::move(inputs);
  s.call = std::move(call);
  s.naive = std::move(naive);
  samples_.reserve(256);  // references handed out stay valid
  OCCAM_ASSERT(samples_.size() < 256);
  samples_.push_back(std::move(s));
  return samples_.back();
}

void Spec::bad(std::string name, std::function<void()> call, std::string text) {
  bads_.push_back({std::move(name), std::move(call), std::move(text)});
}

}  // namespace occam::spec
