// bilstm2d against loops in double over lines of a small grid.
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/apply.h"
#include "autograd/engine.h"
#include "core/grad_mode.h"
#include "nn/mixers/mixer.h"
#include "ops/reduce/op.h"
#include "ops/slice/op.h"
#include "tests/core/expect_error.h"
#include "tests/nn/rule.h"

namespace occam {
namespace {

using Values = std::vector<double>;

struct Weights {
  Values ih, hh, bias_ih, bias_hh;
  static Weights of(Module& m, const std::string& prefix) {
    auto get = [&](const char* name) {
      for (auto& [path, p] : m.named_parameters())
        if (path == prefix + name) return p->value().to_vector<double>();
      ADD_FAILURE() << "no parameter " << prefix << name;
      return Values{};
    };
    return {get("weight_ih"), get("weight_hh"), get("bias_ih"), get("bias_hh")};
  }
};

/// States of one head and direction along tokens [l][w] -> [l][k].
std::vector<Values> states(const Weights& p, int64_t which, const std::vector<Values>& x, int64_t k,
                           bool back) {
  const int64_t l = int64_t(x.size()), w = int64_t(x[0].size());
  std::vector<Values> y(x.size());
  Values h(size_t(k), 0.0), c(size_t(k), 0.0);
  auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  for (int64_t n = 0; n < l; ++n) {
    const int64_t at = back ? l - 1 - n : n;
    Values z(size_t(4 * k));
    for (int64_t j = 0; j < 4 * k; ++j) {
      const int64_t row = which * 4 * k + j;
      double& sum = z[size_t(j)] = p.bias_ih[size_t(row)] + p.bias_hh[size_t(row)];
      for (int64_t i = 0; i < w; ++i) sum += p.ih[size_t(row * w + i)] * x[size_t(at)][size_t(i)];
      for (int64_t i = 0; i < k; ++i) sum += p.hh[size_t(row * k + i)] * h[size_t(i)];
    }
    for (size_t i = 0; i < size_t(k); ++i) {
      const size_t s = size_t(k);
      c[i] = sigmoid(z[s + i]) * c[i] + sigmoid(z[i]) * std::tanh(z[2 * s + i]);
      h[i] = sigmoid(z[3 * s + i]) * std::tanh(c[i]);
    }
    y[size_t(at)] = h;
  }
  return y;
}

TEST(BiLstm2d, IsLstmsAlongRowsAndColumns) {
  const int64_t b = 2, heads = 2, w = 3, k = 4, rows = 3, columns = 2, prefix = 2, d = heads * w;
  const MixerShape s{d, heads, rows, columns, prefix};
  auto mixer = make_mixer("bilstm2d", s, {{"hidden", "4"}});
  rule::fill(*mixer, "grid");
  const Tensor x = rule::tensor("grid/x", {b, s.tokens(), d}, 0, 1);
  NoGrad no_grad;
  auto get = [&](const std::string& name) {
    for (auto& [path, p] : mixer->named_parameters())
      if (path == name) return p->value().to_vector<double>();
    return Values{};
  };
  const Values pre = get("pre.weight"), pre_bias = get("pre.bias"), out = get("head_proj.weight"),
               out_bias = get("head_proj.bias"), xs = x.to_vector<double>();
  const Weights by_row = Weights::of(*mixer, "rnn.row."), by_column = Weights::of(*mixer, "rnn.column.");
  const Values got = mixer->heads(x).to_vector<double>();
  const int64_t t = s.tokens();
  for (int64_t n = 0; n < b; ++n)
    for (int64_t head = 0; head < heads; ++head) {
      std::vector<Values> u(static_cast<size_t>(t), Values(size_t(w)));
      for (int64_t i = 0; i < t; ++i)
        for (int64_t j = 0; j < w; ++j) {
          double& sum = u[size_t(i)][size_t(j)] = pre_bias[size_t(head * w + j)];
          for (int64_t q = 0; q < d; ++q)
            sum += pre[size_t((head * w + j) * d + q)] * xs[size_t((n * t + i) * d + q)];
        }
      // core [t][4k]
      std::vector<Values> core(static_cast<size_t>(t), Values(size_t(4 * k), 0.0));
      for (int orientation = 0; orientation < 2; ++orientation) {
        const int64_t lines = orientation ? columns : rows, length = orientation ? rows : columns;
        for (int64_t line = 0; line < lines; ++line) {
          std::vector<int64_t> at;
          for (int64_t i = 0; i < prefix; ++i) at.push_back(i);
          for (int64_t i = 0; i < length; ++i)
            at.push_back(prefix + (orientation ? i * columns + line : line * columns + i));
          std::vector<Values> in;
          for (int64_t i : at) in.push_back(u[size_t(i)]);
          for (int64_t back = 0; back < 2; ++back) {
            const auto y = states(orientation ? by_column : by_row, back * heads + head, in, k, back == 1);
            for (size_t i = 0; i < at.size(); ++i)
              for (int64_t j = 0; j < k; ++j)
                core[size_t(at[i])][size_t((2 * orientation + back) * k + j)] +=
                    y[i][size_t(j)] / (at[i] < prefix ? double(lines) : 1.0);
          }
        }
      }
      for (int64_t i = 0; i < t; ++i)
        for (int64_t j = 0; j < w; ++j) {
          double want = out_bias[size_t(head * w + j)];
          for (int64_t q = 0; q < 4 * k; ++q)
            want += out[size_t((head * w + j) * 4 * k + q)] * core[size_t(i)][size_t(q)];
          // A dozen f32 roundings of sums of at most 16 terms about 1 on the way.
          ASSERT_NEAR(got[size_t((n * t + i) * d + head * w + j)], want, 16 * 16 * std::ldexp(1.0, -24))
              << "image " << n << " token " << i << " head " << head;
        }
    }
}

TEST(BiLstm2d, ReadsTheWholeImageThroughTheClassToken) {
  const MixerShape s{8, 1, 4, 4, 1};
  auto mixer = make_mixer("bilstm2d", s);
  rule::fill(*mixer, "grid");
  Tensor x = rule::tensor("grid/x", {1, 17, 8}, 0, 1);
  set_requires_grad(x, true);
  Tensor y = mixer->heads(x);
  backward(occam::sum(occam::slice(y, 1, 0, 1)));
  const std::vector<double> g = grad_of(x).to_vector<double>();
  for (int64_t token = 0; token < 17; ++token) {
    double size = 0;
    for (int64_t j = 0; j < 8; ++j) size += std::abs(g[size_t(token * 8 + j)]);
    EXPECT_GT(size, 0) << "token " << token;
  }
}

TEST(BiLstm2d, WantsAGridAndItsTokens) {
  EXPECT_OCCAM_ERROR(make_mixer("bilstm2d", {12, 2}), ErrorKind::usage, "bilstm2d needs a patch grid");
  auto mixer = make_mixer("bilstm2d", {12, 2, 2, 2, 1});
  rule::fill(*mixer, "grid");
  EXPECT_OCCAM_ERROR(mixer->heads(zeros({1, 6, 12})), ErrorKind::shape, "6 tokens");
}

}  // namespace
}  // namespace occam
