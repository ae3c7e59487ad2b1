#include "nn/init.h"

#include <cmath>
#include <numbers>

#include "core/philox.h"

namespace occam::init {

namespace {

/// Uniform in (0, 1) with 53 bits from two words.
double open_uniform(uint32_t high, uint32_t low) {
  return (double((uint64_t(high) << 32 | low) >> 11) + 0.5) * 0x1p-53;
}

/// Standard normal number of element `index`; `attempt` gives further ones.
double normal_at(uint64_t key, int64_t index, uint64_t attempt) {
  Philox4 r = philox4x32(key, uint64_t(index), attempt);
  double u = open_uniform(r.v[0], r.v[1]), v = open_uniform(r.v[2], r.v[3]);
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
}

template <class ByIndex>
Init fill(ByIndex value) {
  return [value](const Tensor& t, uint64_t key) {
    float* p = t.data<float>();
    const int64_t n = t.numel();
#pragma omp parallel for if (n > 4096)
    for (int64_t i = 0; i < n; ++i) p[i] = float(value(key, i));
  };
}

/// `f` of uniform numbers in [0, 1).
Init of_uniform(double (*f)(double)) {
  return [f](const Tensor& t, uint64_t key) {
    uniform(0.5)(t, key);
    float* p = t.data<float>();
    for (int64_t i = 0; i < t.numel(); ++i) p[i] = float(f(double(p[i]) + 0.5));
  };
}

}  // namespace

Init constant(double value) {
  return fill([value](uint64_t, int64_t) { return value; });
}

Init normal(double std) {
  return fill([std](uint64_t key, int64_t i) { return std * normal_at(key, i, 0); });
}

Init trunc_normal(double std) {
  return fill([std](uint64_t key, int64_t i) {
    uint64_t attempt = 0;
    double value = std * normal_at(key, i, attempt);
    while (std::abs(value) > 2) value = std * normal_at(key, i, ++attempt);
    return value;
  });
}

Init uniform(double limit) {
  return fill([limit](uint64_t key, int64_t i) {
    Philox4 r = philox4x32(key, uint64_t(i), 0);
    return limit * (2 * open_uniform(r.v[0], r.v[1]) - 1);
  });
}

Init fan_in_uniform(int64_t fan_in) { return uniform(1 / std::sqrt(double(fan_in))); }

Init by_place(double (*f)(int64_t)) {
  return [f](const Tensor& t, uint64_t) {
    for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = float(f(i % t.size(-1)));
  };
}

Init log_step() {
  return of_uniform([](double u) { return std::log(0.001) + std::log(100.0) * u; });
}

Init softplus_step() {
  return of_uniform([](double u) {
    const double step = 0.001 * std::pow(100, u);
    return step + std::log(-std::expm1(-step));  // the inverse of softplus
  });
}

Init log_rate() {
  return of_uniform([](double u) { return std::log(1 + 15 * u); });
}

}  // namespace occam::init
