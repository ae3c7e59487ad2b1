#include "ops/s4d/op.h"

#include <cmath>
#include <complex>

#include "ops/ragged_spec.h"

namespace {
using namespace occam::spec;
using occam::Tensor;

/// The convolution form, while the op runs the recurrence.
Arrays naive(const Arrays& x, int64_t heads) {
  using Complex = std::complex<double>;
  const Array &u = x[0], &log_dt = x[1], &a_log = x[2], &a_im = x[3], &out = x[4], &skip = x[5];
  const int64_t b = u.size(0), t = u.size(1), c = u.size(2), n = a_log.size(2), w = c / heads;
  Array y({b, t, heads, 2 * w});
  for (int64_t r = 0; r < 2; ++r)
    for (int64_t channel = 0; channel < c; ++channel) {
      const double dt = std::exp(log_dt(r, channel));
      std::vector<double> kernel(size_t(t), 0.0);
      for (int64_t k = 0; k < n; ++k) {
        const Complex rate(-std::exp(a_log(r, channel, k)), a_im(r, channel, k));
        const Complex weight(out(r, channel, k, 0), out(r, channel, k, 1));
        for (int64_t l = 0; l < t; ++l)
          kernel[size_t(l)] +=
              2 * (weight * (std::exp(dt * rate) - 1.0) / rate * std::exp(double(l) * dt * rate)).real();
      }
      for (int64_t i = 0; i < b; ++i)
        for (int64_t token = 0; token < t; ++token) {
          double sum = skip(r, channel) * u(i, token, channel);
          for (int64_t l = 0; l < t; ++l) {
            const int64_t from = r == 0 ? token - l : token + l;
            if (from >= 0 && from < t) sum += kernel[size_t(l)] * u(i, from, channel);
          }
          y(i, token, channel / w, r * w + channel % w) = sum;
        }
    }
  return {y};
}
}  // namespace

OP_SPEC(s4d) {
  // |exp(dt A)| = exp(-dt / 2) with dt above 0.2: a state forgets within 10 steps, a rounding error of it
  // too; one of the factor acts through the slope of the state, another 10 steps long (the gradient's sums
  // reach it as well). y adds 2 n products; parameters' gradients add over images and tokens. bf16: y and
  // gradients are rounded once, at the end.
  auto bound = [](Sample& sample, int64_t t, int64_t n) -> Sample& {
    const double memory = double(std::min<int64_t>(t, 10));
    return sample.conditioned(memory).sum_length(double(2 * n) * memory).half_roundings(2);
  };
  auto inputs = [](Input u, int64_t c, int64_t n) -> std::vector<Input> {
    return {u,
            uniform({2, c}, -1.6, 0),
            uniform({2, c, n}, -0.7, 0.7),
            uniform({2, c, n}, 0, 6),
            randn({2, c, n, 2}),
            randn({2, c})};
  };
  auto padded = [](int64_t heads) {
    return [heads](const std::vector<Tensor>& x) {
      return std::vector{occam::s4d(x[0], x[1], x[2], x[3], x[4], x[5], heads)};
    };
  };
  auto naive_of = [](int64_t heads) { return [heads](const Arrays& x) { return naive(x, heads); }; };
  auto add = [&](const char* name, int64_t b, int64_t t, int64_t heads, int64_t w, int64_t n) -> Sample& {
    const int64_t c = heads * w;
    return bound(spec.sample(name, inputs(randn({b, t, c}), c, n), padded(heads), naive_of(heads)), t, n);
  };
  add("2x4x1x3x2", 2, 4, 1, 3, 2).small();
  add("1x1x1x1x1", 1, 1, 1, 1, 1).small();
  add("2x5x2x2x3", 2, 5, 2, 2, 3).small();
  // Segments; past a tile of tokens, past a block of channels, all states of a lane; more than 16 states.
  add("1x35x1x66x16", 1, 35, 1, 66, 16);
  add("2x17x3x8x5", 2, 17, 3, 8, 5);
  add("1x33x1x5x20", 1, 33, 1, 5, 20);
  add("1x6x1x3x32", 1, 6, 1, 3, 32);
  // Enough blocks to walk along all tokens without segments.
  add("100x18x2x4x2", 100, 18, 2, 4, 2);
  add("no-images", 0, 4, 1, 3, 2);
  add("no-tokens", 2, 0, 1, 3, 2);
  std::vector<std::pair<std::string, Packed>> cases = packed_cases({0});
  // Segments of which a shorter sequence has fewer.
  cases.push_back({"ragged-long", {{20, 50, 0, 1, 32}, 110, 55, {0}}});
  for (const auto& [name, p] : cases) {
    std::vector<Input> of_rows = inputs(p.rows(randn({p.n, 6})), 6, 3);
    of_rows.push_back(p.offsets());
    Sample& sample = spec.sample(
        name, of_rows,
        [p = p](const std::vector<Tensor>& x) {
          return std::vector{occam::s4d(x[0], x[1], x[2], x[3], x[4], x[5], 2, p.sequences(x[6]))};
        },
        p.naive(naive_of(2)));
    bound(sample, p.longest, 3);
    if (p.n <= 12) sample.small();
    if (p.used() > 0) sample.same_as(p.alone(padded(2)));
  }
  auto call = [](int64_t c, int64_t n, int64_t heads) {
    return [=] {
      using occam::zeros;
      occam::s4d(zeros({1, 2, c}), zeros({2, c}), zeros({2, c, n}), zeros({2, c, n}), zeros({2, c, n, 2}),
                 zeros({2, c}), heads);
    };
  };
  spec.bad("heads", call(7, 2, 2), "s4d: 7 channels do not divide into 2 heads");
  spec.bad("states", call(4, 33, 2), "s4d: 33 states a channel; 1 to 32 are possible");
}
