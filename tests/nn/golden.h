#pragma once
// A mixer's formula worked out number by number in f64: what such tests share.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "core/grad_mode.h"
#include "nn/mixers/mixer.h"
#include "tests/nn/rule.h"

namespace occam {

using Vector = std::vector<double>;

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double silu(double x) { return x * sigmoid(x); }
inline double softplus(double x) { return std::log1p(std::exp(x)); }

/// A mixer filled by rule, its parameters in f64, and the second of two images.
struct Golden {
  MixerShape shape;
  int64_t t, d, h, w;
  std::unique_ptr<TokenMixer> mixer;
  std::map<std::string, Vector> values;
  Tensor x;      // [2,t,c]
  Vector input;  // [t,c]

  Golden(const char* name, const MixerShape& s, int64_t tokens, const MixerOptions& options = {})
      : shape(s), t(tokens), d(s.dim), h(s.heads), w(s.head_dim()), mixer(make_mixer(name, s, options)) {
    rule::fill(*mixer, name);
    read_values();
    x = rule::tensor(std::string(name) + "/x", {2, t, d}, 0, 1.5);
    const Vector both = x.to_vector<double>();
    input.assign(both.begin() + t * d, both.end());
  }
  /// After parameters were set.
  void read_values() {
    for (auto& [path, p] : mixer->named_parameters()) values[path] = p->master().to_vector<double>();
  }
  /// Empty where the mixer has no such parameter.
  const Vector& of(const std::string& path) const {
    static const Vector none;
    auto found = values.find(path);
    return found == values.end() ? none : found->second;
  }
  double at(const std::string& path, int64_t i) const { return values.at(path).at(size_t(i)); }
  /// weight [rows, width] times `from` plus bias (empty: none).
  static Vector linear(const Vector& weight, const Vector& bias, const double* from, int64_t width) {
    Vector y(weight.size() / size_t(width), 0.0);
    for (size_t i = 0; i < y.size(); ++i) {
      y[i] = bias.empty() ? 0 : bias[i];
      for (int64_t j = 0; j < width; ++j) y[i] += weight[i * size_t(width) + size_t(j)] * from[j];
    }
    return y;
  }
  /// The same by layer `which` of `count` whose weights (and biases, if any) stand one after another.
  Vector layer(const Vector& weights, const Vector& biases, int64_t which, int64_t count, const double* from,
               int64_t width) const {
    auto part = [&](const Vector& all) {
      const int64_t each = int64_t(all.size()) / count;
      return Vector(all.begin() + which * each, all.begin() + (which + 1) * each);
    };
    return linear(part(weights), part(biases), from, width);
  }
  /// pre's output by token [c].
  std::vector<Vector> pre() const {
    std::vector<Vector> u;
    for (int64_t n = 0; n < t; ++n)
      u.push_back(linear(of("pre.weight"), of("pre.bias"), input.data() + n * d, d));
    return u;
  }
  /// v [t,h,k]: head_proj of each head, then compared with the tap; f32 sums of some hundred terms of
  /// size 1.
  void expect_heads(const Vector& v) {
    const int64_t k = int64_t(v.size()) / (t * h);
    NoGrad no_grad;
    const auto got = mixer->heads(x).to_vector<double>();
    ASSERT_EQ(int64_t(got.size()), 2 * t * d);
    for (int64_t n = 0; n < t; ++n)
      for (int64_t head = 0; head < h; ++head) {
        const Vector y =
            layer(of("head_proj.weight"), of("head_proj.bias"), head, h, v.data() + (n * h + head) * k, k);
        ASSERT_EQ(int64_t(y.size()), w);
        for (int64_t i = 0; i < w; ++i)
          // Three sums of at most 28 products, one after the other, whose errors a recurrence remembers for
          // about 4 steps: 336 roundings of f32.
          ASSERT_NEAR(got[size_t(((t + n) * h + head) * w + i)], y[size_t(i)],
                      336 * std::ldexp(1.0, -24) * (1 + std::abs(y[size_t(i)])))
              << "token " << n << " head " << head << " channel " << i;
      }
  }
};

}  // namespace occam
