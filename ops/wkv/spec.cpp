#include "ops/wkv/op.h"

#include <algorithm>
#include <cmath>

#include "ops/concat/op.h"
#include "ops/elementwise/op.h"
#include "ops/ragged_spec.h"
#include "ops/reduce/op.h"
#include "ops/slice/op.h"
#include "ops/softmax/op.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Shape;
using occam::Tensor;

Arrays naive(const Arrays& in) {
  const Array &k = in[0], &v = in[1], &w = in[2], &u = in[3];
  Array y(k.shape);
  const int64_t t = k.size(1);
  for (int64_t b = 0; b < k.size(0); ++b)
    for (int64_t c = 0; c < k.size(2); ++c)
      for (int64_t s = 0; s < t; ++s) {
        auto exponent = [&](int64_t i) {
          return k(b, i, c) + (i == s ? u(c) : -w(c) / double(t) * double(std::abs(s - i) - 1));
        };
        double max = exponent(0), num = 0, den = 0;
        for (int64_t i = 1; i < t; ++i) max = std::max(max, exponent(i));
        for (int64_t i = 0; i < t; ++i) {
          const double e = std::exp(exponent(i) - max);
          num += e * v(b, i, c), den += e;
        }
        y(b, s, c) = num / den;
      }
  return {y};
}

/// The whole matrix of weights, channel by channel: softmax over i of k_i - w(|s-i|-1)/t.
std::vector<Tensor> by_matrix(const std::vector<Tensor>& in) {
  const Tensor &k = in[0], &v = in[1];
  const int64_t b = k.size(0), t = k.size(1), c = k.size(2);
  std::vector<double> far(size_t(t * t)), own(size_t(t * t));
  for (int64_t s = 0; s < t; ++s)
    for (int64_t i = 0; i < t; ++i) {
      far[size_t(s * t + i)] = s == i ? 0 : double(1 - std::abs(s - i)) / double(t);
      own[size_t(s * t + i)] = s == i;
    }
  auto constant = [&](const std::vector<double>& values) {
    Tensor m = occam::empty({t, 1, t}, {occam::DType::f64, occam::kCPU});
    std::copy(values.begin(), values.end(), m.data<double>());
    return occam::raw::to(occam::raw::to(m, k.dtype()), k.device());
  };
  auto by_channel = [&](const Tensor& x) { return occam::reshape(occam::transpose(x, 1, 2), {b, 1, c, t}); };
  auto column = [&](const Tensor& x) { return occam::reshape(x, {c, 1}); };
  Tensor exponents = by_channel(k) + constant(far) * column(in[2]) + constant(own) * column(in[3]);
  return {occam::sum(occam::softmax(exponents, 3) * by_channel(v), {3})};
}
}  // namespace

OP_SPEC(wkv) {
  // `decay` is that of a token. A weight is e^x of an exponent x that is the sum of the decays on the way:
  // rounded to eps times its size, which for weights that count is at most the spread of k, a few e-folds and
  // what a negative decay makes grow.
  auto bound = [](Sample& sample, int64_t rows, int64_t t, double spread, double decay) -> Sample& {
    return sample.sum_length(double(std::max<int64_t>(rows, 1)))
        .half_roundings(1.01)  // what is stored: states, and the y that backward reads, are f32
        .conditioned(3 * spread + 4 + std::max(0.0, -decay) * double(t));
  };
  auto padded = [](const std::vector<Tensor>& in) {
    return std::vector{occam::wkv(in[0], in[1], in[2], in[3])};
  };
  auto add = [&](const char* name, int64_t b, int64_t t, int64_t c, double spread, double decay) -> Sample& {
    Sample& sample = spec.sample(
        name, {randn({b, t, c}, spread), randn({b, t, c}), uniform({c}, 0, decay * double(t)), randn({c})},
        padded, naive);
    bound(sample, b * t, t, spread, decay);
    return t > 0 ? sample.same_as(by_matrix) : sample;  // softmax refuses empty rows
  };
  add("2x5x3", 2, 5, 3, 1, 1).small();
  // The output of one token is its value: the gradient of its key is the difference of the two.
  add("1x1x1", 1, 1, 1, 1, 1).cancelling_terms(0, 1).small();
  add("2x2x4", 2, 2, 4, 1, 1).small();
  // Lengths round the chunks of a warp and the segments in it; channels round a warp.
  add("3x31x33", 3, 31, 33, 1, 0.2);
  add("2x33x32", 2, 33, 32, 1, 0.2);
  add("1x197x70", 1, 197, 70, 1, 0.05);
  add("1x70x5-slow-decay", 1, 70, 5, 1, 0);
  // Keys far beyond what an exponential of f32 holds.
  add("2x40x6-large-keys", 2, 40, 6, 60, 3);
  add("2x40x6-growing", 2, 40, 6, 1, -2);
  add("2x40x8-steep-decay", 2, 40, 8, 1, 3);
  add("1x70x8-decay-of-42", 1, 70, 8, 1, 0.6);
  // More tokens than a block takes, and than shared memory has room for.
  add("1x530x8", 1, 530, 8, 1, 0.01);
  add("1x270x8-steep-decay", 1, 270, 8, 1, 3);
  add("no-images", 0, 4, 3, 1, 1);
  add("no-tokens", 2, 0, 3, 1, 1);
  add("no-channels", 2, 4, 0, 1, 1);
  std::vector<std::pair<std::string, Packed>> cases = packed_cases({0, 1});
  cases.push_back({"ragged-long", {{40, 0, 197, 3, 25}, 270, 200, {0, 1}}});
  for (const auto& [name, p] : cases) {
    Sample& sample = spec.sample(
        name, {p.rows(randn({p.n, 5})), p.rows(randn({p.n, 5})), uniform({5}, 0, 4), randn({5}), p.offsets()},
        [p = p](const std::vector<Tensor>& in) {
          return std::vector{occam::wkv(in[0], in[1], in[2], in[3], p.sequences(in[4]))};
        },
        p.naive(naive));
    bound(sample, p.n, p.longest, 1, 1);
    if (p.n <= 12) sample.small();
    if (p.used() > 0) sample.same_as(p.alone(by_matrix));
  }
  spec.bad(
      "decay",
      [] {
        occam::Tensor x = occam::zeros({1, 2, 3});
        occam::wkv(x, x, occam::zeros({4}), occam::zeros({3}));
      },
      "wkv: axis `c` is 3 in k [1,2,3] but 4 in w [4]");
  spec.bad(
      "tokens",
      [] {
        occam::Tensor x = occam::zeros({1, int64_t(1) << 31, 0});
        occam::wkv(x, x, occam::zeros({0}), occam::zeros({0}));
      },
      "wkv: k [1,2147483648,0] has sequences of 2^31 tokens or more");
}
