#include "ops/selective_scan/op.h"

#include <cmath>

#include "ops/activation/op.h"
#include "ops/concat/op.h"
#include "ops/elementwise/op.h"
#include "ops/ragged_spec.h"
#include "ops/reduce/op.h"
#include "ops/slice/op.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Tensor;

Arrays naive(const Arrays& x, int64_t heads) {
  const Array &u = x[0], &delta = x[1], &a_log = x[2], &in = x[3], &out = x[4], &skip = x[5];
  const int64_t b = u.size(0), t = u.size(1), c = u.size(3), n = a_log.size(2), w = c / heads;
  Array y({b, t, heads, 2 * w});
  for (int64_t i = 0; i < b; ++i)
    for (int64_t r = 0; r < 2; ++r)
      for (int64_t channel = 0; channel < c; ++channel) {
        std::vector<double> h(size_t(n), 0.0);
        for (int64_t s = 0; s < t; ++s) {
          const int64_t token = r == 0 ? s : t - 1 - s;
          const double dt = std::log1p(std::exp(delta(i, token, r, channel)));
          double sum = skip(r, channel) * u(i, token, r, channel);
          for (int64_t k = 0; k < n; ++k) {
            h[size_t(k)] = std::exp(-dt * std::exp(a_log(r, channel, k))) * h[size_t(k)] +
                           dt * in(i, token, r, k) * u(i, token, r, channel);
            sum += out(i, token, r, k) * h[size_t(k)];
          }
          y(i, token, channel / w, r * w + channel % w) = sum;
        }
      }
  return {y};
}

/// Steps of plain ops; states [b,c,n].
std::vector<Tensor> by_step(const std::vector<Tensor>& x, int64_t heads) {
  const int64_t b = x[0].size(0), t = x[0].size(1), c = x[0].size(3), n = x[2].size(2), w = c / heads;
  auto at = [&](const Tensor& v, int64_t token, int64_t r, const occam::Shape& shape) {
    return occam::reshape(occam::slice(occam::slice(v, 1, token, 1), 2, r, 1), shape);
  };
  std::vector<Tensor> directions;
  for (int64_t r = 0; r < 2; ++r) {
    const Tensor rate = occam::exp(occam::reshape(occam::slice(x[2], 0, r, 1), {1, c, n})) * -1.0;
    const Tensor skip = occam::reshape(occam::slice(x[5], 0, r, 1), {1, c});
    std::vector<Tensor> outputs(static_cast<size_t>(t));
    Tensor h;
    for (int64_t s = 0; s < t; ++s) {
      const int64_t token = r == 0 ? s : t - 1 - s;
      const Tensor u = at(x[0], token, r, {b, c}), delta = at(x[1], token, r, {b, c});
      const Tensor dt = occam::log(occam::add_scalar(occam::exp(delta), 1));
      const Tensor fresh = occam::reshape(dt * u, {b, c, 1}) * at(x[3], token, r, {b, 1, n});
      h = h ? occam::exp(occam::reshape(dt, {b, c, 1}) * rate) * h + fresh : fresh;
      const Tensor y = occam::reshape(occam::sum(h * at(x[4], token, r, {b, 1, n}), {2}), {b, c});
      outputs[size_t(token)] = occam::reshape(y + skip * u, {b, 1, heads, 1, w});
    }
    directions.push_back(occam::concat(outputs, 1));
  }
  return {occam::reshape(occam::concat(directions, 3), {b, t, heads, 2 * w})};
}
}  // namespace

OP_SPEC(selective_scan) {
  // dt is about 0.7 and A between -4 and -1/4: an error is remembered for 1 / (1 - e^-0.17) = 6 steps at
  // most, and exp(dt A) turns one of dt into up to |dt A| e^-|dt A| < 0.4 of itself. y adds n states; the
  // gradient of A adds over images and tokens, that of B and C over channels. bf16: y and the gradients are
  // rounded once, at the end.
  auto bound = [](Sample& sample, int64_t t, int64_t n) -> Sample& {
    const double memory = double(std::min<int64_t>(t, 6));
    return sample.conditioned(memory).sum_length(double(n) * memory).half_roundings(2);
  };
  auto padded = [](int64_t heads) {
    return [heads](const std::vector<Tensor>& x) {
      return std::vector{occam::selective_scan(x[0], x[1], x[2], x[3], x[4], x[5], heads)};
    };
  };
  auto naive_of = [](int64_t heads) { return [heads](const Arrays& x) { return naive(x, heads); }; };
  auto add = [&](const char* name, int64_t b, int64_t t, int64_t heads, int64_t w, int64_t n) -> Sample& {
    const int64_t c = heads * w;
    return bound(spec.sample(name,
                             {randn({b, t, 2, c}), randn({b, t, 2, c}), uniform({2, c, n}, -1.4, 1.4),
                              randn({b, t, 2, n}), randn({b, t, 2, n}), randn({2, c})},
                             padded(heads), naive_of(heads)),
                 t, n);
  };
  auto steps = [](int64_t heads) {
    return [heads](const std::vector<Tensor>& x) { return by_step(x, heads); };
  };
  add("2x4x1x3x2", 2, 4, 1, 3, 2).small().same_as(steps(1));
  add("1x1x1x1x1", 1, 1, 1, 1, 1).small();
  add("2x5x2x2x3", 2, 5, 2, 2, 3).small().same_as(steps(2));
  // Past a tile of tokens and a chunk of the CPU's backward, past a block of channels, whole states.
  add("1x35x1x66x16", 1, 35, 1, 66, 16);
  add("2x17x3x8x5", 2, 17, 3, 8, 5);
  // More states than 16; tiles of 4 tokens.
  add("2x9x1x10x20", 2, 9, 1, 10, 20);
  add("1x6x1x3x64", 1, 6, 1, 3, 64);
  // Enough blocks to walk along all tokens without segments.
  add("100x18x2x4x2", 100, 18, 2, 4, 2);
  add("no-images", 0, 4, 1, 3, 2);
  add("no-tokens", 2, 0, 1, 3, 2);
  std::vector<std::pair<std::string, Packed>> cases = packed_cases({0, 1, 3, 4});
  // Segments of which a shorter sequence has fewer.
  cases.push_back({"ragged-long", {{20, 50, 0, 1, 32}, 110, 55, {0, 1, 3, 4}}});
  for (const auto& [name, p] : cases) {
    auto rows = [&p = p](int64_t width) { return p.rows(randn({p.n, 2, width})); };
    Sample& sample = spec.sample(
        name, {rows(6), rows(6), uniform({2, 6, 3}, -1.4, 1.4), rows(3), rows(3), randn({2, 6}), p.offsets()},
        [p = p](const std::vector<Tensor>& x) {
          return std::vector{occam::selective_scan(x[0], x[1], x[2], x[3], x[4], x[5], 2, p.sequences(x[6]))};
        },
        p.naive(naive_of(2)));
    bound(sample, p.longest, 3);
    if (p.n <= 12) sample.small();
    if (p.used() > 0) sample.same_as(p.alone(padded(2)));
  }
  auto call = [](int64_t c, int64_t n, int64_t heads) {
    return [=] {
      occam::selective_scan(occam::zeros({1, 2, 2, c}), occam::zeros({1, 2, 2, c}), occam::zeros({2, c, n}),
                            occam::zeros({1, 2, 2, n}), occam::zeros({1, 2, 2, n}), occam::zeros({2, c}),
                            heads);
    };
  };
  spec.bad("heads", call(7, 2, 2), "selective_scan: 7 channels do not divide into 2 heads");
  spec.bad("states", call(4, 65, 2), "selective_scan: 65 states a channel; 1 to 64 are possible");
}
