#include "ops/matmul/op.h"

#include <cmath>

#include "ops/elementwise/op.h"
#include "ops/reduce/op.h"
#include "ops/spec.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

/// Offset of the matrix of `t` that belongs to number `index` of the broadcast batch axes.
int64_t matrix_at(const Array& t, const Shape& batch, int64_t index) {
  int64_t at = 0, step = t.size(-2) * t.size(-1);
  for (int i = -1; i >= -batch.rank(); --i) {
    int64_t place = index % batch[i];
    index /= batch[i];
    if (-i > t.shape.rank() - 2) continue;
    int64_t size = t.size(i - 2);
    at += (size == 1 ? 0 : place) * step;
    step *= size;
  }
  return at;
}

Arrays naive(const Arrays& in, const Shape& batch, bool ta, bool tb) {
  const Array &a = in[0], &b = in[1];
  int64_t m = a.size(ta ? -1 : -2), k = a.size(ta ? -2 : -1), n = b.size(tb ? -2 : -1);
  Shape shape = batch;
  shape.push_back(m);
  shape.push_back(n);
  Array y(shape);
  for (int64_t i = 0; i < batch.numel(); ++i) {
    int64_t x = matrix_at(a, batch, i), z = matrix_at(b, batch, i);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < n; ++c) {
        double sum = 0;
        for (int64_t j = 0; j < k; ++j)
          sum +=
              a.v[size_t(x + (ta ? j * m + r : r * k + j))] * b.v[size_t(z + (tb ? c * k + j : j * n + c))];
        y.v[size_t((i * m + r) * n + c)] = sum;
      }
  }
  return {y};
}

/// The product as a broadcast multiplication and a sum: [..., m, 1, k] * [..., 1, n, k] over k.
Tensor by_elements(const Tensor& a, const Tensor& b, bool ta, bool tb) {
  Tensor x = ta ? occam::transpose(a, -1, -2) : a, y = tb ? b : occam::transpose(b, -1, -2);
  auto with_one = [](const Shape& s, int place) {
    Shape wide;
    for (int i = 0; i < s.rank(); ++i) {
      if (i == s.rank() + place) wide.push_back(1);
      wide.push_back(s[i]);
    }
    return wide;
  };
  return occam::sum(occam::reshape(x, with_one(x.shape(), -1)) * occam::reshape(y, with_one(y.shape(), -2)),
                    {-1});
}
}  // namespace

OP_SPEC(matmul) {
  auto add = [&](const char* name, Shape a, Shape b, Shape batch, bool ta = false,
                 bool tb = false) -> Sample& {
    int64_t k = a[ta ? -2 : -1];
    return spec
        .sample(
            name, {outliers(a), randn(b, 1 / std::sqrt(double(k + 1)))},
            [=](const std::vector<Tensor>& in) { return std::vector{occam::matmul(in[0], in[1], ta, tb)}; },
            [=](const Arrays& in) { return naive(in, batch, ta, tb); })
        .sum_length(double(k))
        .cancelling_terms(1, 1)
        .same_as(
            [=](const std::vector<Tensor>& in) { return std::vector{by_elements(in[0], in[1], ta, tb)}; });
  };
  add("1x1x1", {1, 1}, {1, 1}, {}).small();
  add("3x5-5x7", {3, 5}, {5, 7}, {}).small();
  add("3x5-5x7-ta", {5, 3}, {5, 7}, {}, true);
  add("3x5-5x7-tb", {3, 5}, {7, 5}, {}, false, true);
  add("3x5-5x7-ta-tb", {5, 3}, {7, 5}, {}, true, true);
  add("batch", {2, 3, 3, 5}, {2, 3, 5, 2}, {2, 3}).small();
  add("batch-tb", {3, 3, 5}, {3, 2, 5}, {3}, false, true);
  add("batch-ta", {3, 5, 3}, {3, 5, 2}, {3}, true);
  // Shared b: rows are stacked forward, and backward where the stored order allows.
  add("shared-b", {2, 3, 3, 5}, {5, 2}, {2, 3}).small();
  add("shared-b-tb", {4, 3, 5}, {2, 5}, {4}, false, true);
  add("shared-b-ta", {4, 5, 3}, {5, 2}, {4}, true);
  add("shared-a", {3, 5}, {4, 5, 2}, {4});
  add("shared-a-ta", {5, 3}, {2, 2, 5, 2}, {2, 2}, true);
  // Both broadcast: neither operand's batch axes merge.
  add("outer", {3, 1, 2, 4}, {2, 4, 3}, {3, 2}).small();
  add("outer-ta-tb", {2, 1, 3, 4, 2}, {2, 1, 3, 4}, {2, 2, 3}, true, true);
  add("inner-broadcast", {2, 3, 2, 4}, {2, 1, 4, 3}, {2, 3});
  add("2x67x65-65x33", {2, 67, 65}, {2, 65, 33}, {2});
  add("empty-batch", {0, 3, 5}, {5, 2}, {0});
  add("empty-inner", {2, 3, 0}, {2, 0, 4}, {2});
  add("empty-rows", {0, 5}, {5, 2}, {});
  spec.bad(
      "inner",
      [] {
        occam::matmul(occam::zeros({2, 3, 5}), occam::zeros({2, 5, 4}), false, true);
      },
      "matmul: the inner size is 5 in a [2,3,5] but 4 in b [2,5,4] transposed");
  spec.bad(
      "batch",
      [] {
        occam::matmul(occam::zeros({2, 3, 5}), occam::zeros({3, 5, 4}));
      },
      "matmul: batch axes [2] of a [2,3,5] and [3] of b [3,5,4] do not broadcast");
  spec.bad(
      "vector",
      [] {
        occam::matmul(occam::zeros({2, 5}), occam::zeros({5}));
      },
      "matmul: b [5] has fewer than two axes; reshape a vector");
}
