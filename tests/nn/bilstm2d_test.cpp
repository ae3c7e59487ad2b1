// bilstm2d against loops in double over lines of a small grid.
#include "autograd/apply.h"
#include "autograd/engine.h"
#include "ops/reduce/op.h"
#include "ops/slice/op.h"
#include "tests/core/expect_error.h"
#include "tests/nn/golden.h"

namespace occam {
namespace {

struct Weights {
  Vector ih, hh, bias_ih, bias_hh;
  static Weights of(const Golden& g, const std::string& prefix) {
    return {g.of(prefix + "weight_ih"), g.of(prefix + "weight_hh"), g.of(prefix + "bias_ih"),
            g.of(prefix + "bias_hh")};
  }
};

/// States of one head and direction along tokens [l][w] -> [l][k].
std::vector<Vector> states(const Weights& p, int64_t which, const std::vector<Vector>& x, int64_t k,
                           bool back) {
  const int64_t l = int64_t(x.size()), w = int64_t(x[0].size());
  std::vector<Vector> y(x.size());
  Vector h(size_t(k), 0.0), c(size_t(k), 0.0);
  for (int64_t n = 0; n < l; ++n) {
    const int64_t at = back ? l - 1 - n : n;
    Vector z(size_t(4 * k));
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

void expect_lstms_along_rows_and_columns(int64_t rows, int64_t columns) {
  const int64_t heads = 2, w = 3, k = 4, prefix = 2;
  const MixerShape s{heads * w, heads, rows, columns, prefix};
  Golden g("bilstm2d", s, s.tokens(), {{"hidden", "4"}});
  const Weights weights = Weights::of(g, "rnn.");
  const std::vector<Vector> u = g.pre();
  Vector core(size_t(g.t * heads * 4 * k), 0.0);  // [t,h,4k]
  for (int64_t head = 0; head < heads; ++head)
    for (int orientation = 0; orientation < 2; ++orientation) {
      const int64_t lines = orientation ? columns : rows, length = orientation ? rows : columns;
      for (int64_t line = 0; line < lines; ++line) {
        std::vector<int64_t> at;
        for (int64_t i = 0; i < prefix; ++i) at.push_back(i);
        for (int64_t i = 0; i < length; ++i)
          at.push_back(prefix + (orientation ? i * columns + line : line * columns + i));
        std::vector<Vector> in;
        for (int64_t i : at)
          in.emplace_back(u[size_t(i)].begin() + head * w, u[size_t(i)].begin() + (head + 1) * w);
        for (int64_t back = 0; back < 2; ++back) {
          const auto y = states(weights, (2 * back + orientation) * heads + head, in, k, back == 1);
          for (size_t i = 0; i < at.size(); ++i)
            for (int64_t j = 0; j < k; ++j)
              core[size_t(((at[i] * heads + head) * 4 + 2 * orientation + back) * k + j)] +=
                  y[i][size_t(j)] / (at[i] < prefix ? double(lines) : 1.0);
        }
      }
    }
  g.expect_heads(core);
}

TEST(BiLstm2d, IsLstmsAlongRowsAndColumns) {
  expect_lstms_along_rows_and_columns(3, 2);
  expect_lstms_along_rows_and_columns(3, 3);
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
