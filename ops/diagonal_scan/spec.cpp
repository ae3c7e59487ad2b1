#include "ops/diagonal_scan/op.h"

#include <cmath>
#include <numeric>

#include "ops/activation/op.h"
#include "ops/concat/op.h"
#include "ops/elementwise/op.h"
#include "ops/grouped_linear/op.h"
#include "ops/ragged_spec.h"
#include "ops/slice/op.h"
#include "ops/spec.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::GatedCell;
using occam::Tensor;

/// Standard normal, but at least 0.1 from 0, where the slope of g jumps and differences say nothing.
Input off_the_kink(const occam::Shape& shape) {
  Input input = randn(shape);
  auto plain = input.value;
  input.value = [plain](int64_t i, occam::Rng& rng) {
    double v = plain(i, rng);
    return v < 0 ? v - 0.1 : v + 0.1;
  };
  return input;
}

/// Biases of gates by head. Of large samples some gate would be near the kink: biases of 3 either way keep
/// them off. Where that is -3 an error is remembered for 21 steps.
Input bias_of(int64_t h, int64_t k, int64_t w, bool large) {
  Input bias = uniform({2, h, k * w}, -1, 1);
  if (large)
    bias.value = [k, w](int64_t j, occam::Rng&) { return (j % w >> j / w % k) % 2 == 0 ? 3.0 : -3.0; };
  return bias;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// y(n, token, head, direction, channel) from a and b of the same places.
template <class A, class B, class Y>
void recurrence(int64_t b, int64_t t, int64_t h, int64_t w, const A& a_of, const B& b_of, const Y& put) {
  for (int64_t n = 0; n < b; ++n)
    for (int64_t head = 0; head < h; ++head)
      for (int64_t r = 0; r < 2; ++r)
        for (int64_t k = 0; k < w; ++k) {
          double state = 0;
          for (int64_t s = 0; s < t; ++s) {
            int64_t token = r == 0 ? s : t - 1 - s;
            state = a_of(n, token, head, r, k) * state + b_of(n, token, head, r, k);
            put(n, token, head, r, k, state);
          }
        }
}

Arrays naive_plain(const Arrays& in) {
  const occam::Shape& s = in[0].shape;
  Array y(s);
  auto a = [&](auto... i) { return in[0](i...); };
  auto b = [&](auto... i) { return in[1](i...); };
  recurrence(s[0], s[1], s[2], s[4], a, b,
             [&](int64_t n, int64_t i, int64_t h, int64_t r, int64_t k, double v) { y(n, i, h, r, k) = v; });
  return {y};
}

Array naive_gates(const Array& x, const Array& m, const Array& bias) {
  Array gates({x.size(0), x.size(1), x.size(2), 2, m.size(2)});
  for (int64_t n = 0; n < x.size(0); ++n)
    for (int64_t token = 0; token < x.size(1); ++token)
      for (int64_t head = 0; head < x.size(2); ++head)
        for (int64_t r = 0; r < 2; ++r)
          for (int64_t row = 0; row < m.size(2); ++row) {
            const double *weight = &m.v[size_t(((r * x.size(2) + head) * m.size(2) + row) * x.size(3))],
                         *value = &x.v[size_t(((n * x.size(1) + token) * x.size(2) + head) * x.size(3))];
            gates(n, token, head, r, row) =
                std::inner_product(weight, weight + x.size(3), value, bias(r, head, row));
          }
  return gates;
}

/// gates(n, token, head, direction, row) -> [b,t,h,2w].
template <class Gates>
Array naive_gated(int64_t b, int64_t t, int64_t h, int64_t w, GatedCell cell, const Gates& gates) {
  Array y({b, t, h, 2 * w});
  auto keep = [&](int64_t n, int64_t i, int64_t head, int64_t r, int64_t k) {
    double first = gates(n, i, head, r, k);
    if (cell == GatedCell::min_gru) return 1 - sigmoid(first);
    double f = sigmoid(first), in = sigmoid(gates(n, i, head, r, w + k));
    return f / (f + in);
  };
  auto fresh = [&](int64_t n, int64_t i, int64_t head, int64_t r, int64_t k) {
    double v = gates(n, i, head, r, (cell == GatedCell::min_gru ? 1 : 2) * w + k);
    return (1 - keep(n, i, head, r, k)) * (v >= 0 ? v + 0.5 : sigmoid(v));
  };
  recurrence(b, t, h, w, keep, fresh,
             [&](int64_t n, int64_t i, int64_t head, int64_t r, int64_t k, double v) {
               y(n, i, head, r * w + k) = v;
             });
  return y;
}

/// x, w, bias, project and its bias (or none) -> [b,t,h,o].
Array naive_project(const Arrays& in, GatedCell cell) {
  const int64_t b = in[0].size(0), t = in[0].size(1), h = in[0].size(2), o = in[3].size(1),
                two_w = in[3].size(2);
  const Array gates = naive_gates(in[0], in[1], in[2]);
  const Array states = naive_gated(b, t, h, two_w / 2, cell, [&](auto... at) { return gates(at...); });
  Array y({b, t, h, o});
  for (int64_t n = 0; n < b; ++n)
    for (int64_t token = 0; token < t; ++token)
      for (int64_t head = 0; head < h; ++head)
        for (int64_t j = 0; j < o; ++j) {
          const double *row = &in[3].v[size_t((head * o + j) * two_w)],
                       *state = &states.v[size_t(((n * t + token) * h + head) * two_w)];
          y(n, token, head, j) =
              std::inner_product(row, row + two_w, state, in[4].absent() ? 0.0 : in[4](head, j));
        }
  return y;
}

/// A step of plain ops at a time: part(i, r) is a part [b,1,h,1,w] of token i in direction r.
template <class Part>
Tensor by_step(int64_t t, const Part& a, const Part& b) {
  std::vector<Tensor> directions;
  for (int64_t r = 0; r < 2; ++r) {
    std::vector<Tensor> states(static_cast<size_t>(t));
    Tensor h;
    for (int64_t s = 0; s < t; ++s) {
      int64_t token = r == 0 ? s : t - 1 - s;
      h = h ? a(token, r) * h + b(token, r) : b(token, r);
      states[size_t(token)] = h;
    }
    directions.push_back(occam::concat(states, 1));
  }
  return occam::concat(directions, 3);
}

Tensor at(const Tensor& x, int64_t token, int64_t r) {
  return occam::slice(occam::slice(x, 1, token, 1), 3, r, 1);
}

Tensor plain_by_step(const Tensor& a, const Tensor& b) {
  using Part = std::function<Tensor(int64_t, int64_t)>;
  return by_step<Part>(
      a.size(1), [&](int64_t i, int64_t r) { return at(a, i, r); },
      [&](int64_t i, int64_t r) { return at(b, i, r); });
}

/// g by its branches: v + 1/2 = relu(v) + 1/2 where v >= 0, and sigmoid(-relu(-v)) is 1/2 there.
Tensor value_of(const Tensor& v) { return occam::relu(v) + occam::sigmoid(occam::relu(v * -1.0) * -1.0); }

Tensor gated_by_step(const Tensor& gates, GatedCell cell) {
  int64_t w = gates.size(4) / occam::gates_of(cell);
  auto gate = [&](int64_t i) { return occam::slice(gates, 4, i * w, w); };
  Tensor fresh, value;
  if (cell == GatedCell::min_gru) {
    fresh = occam::sigmoid(gate(0)), value = value_of(gate(1));
  } else {
    Tensor f = occam::sigmoid(gate(0)), i = occam::sigmoid(gate(1));
    fresh = i / (f + i), value = value_of(gate(2));
  }
  Tensor y = plain_by_step(occam::add_scalar(fresh * -1.0, 1), fresh * value);
  return occam::reshape(y, {y.size(0), y.size(1), y.size(2), 2 * w});
}

Tensor head_by_step(const Tensor& x, const Tensor& w, const Tensor& bias, GatedCell cell) {
  std::vector<Tensor> directions;
  for (int64_t r = 0; r < 2; ++r) {
    occam::Shape s = w.shape();
    Tensor of_r = occam::grouped_linear(x, occam::reshape(occam::slice(w, 0, r, 1), {s[1], s[2], s[3]}),
                                        occam::reshape(occam::slice(bias, 0, r, 1), {s[1], s[2]}));
    directions.push_back(occam::reshape(of_r, {x.size(0), x.size(1), x.size(2), 1, s[2]}));
  }
  return gated_by_step(occam::concat(directions, 3), cell);
}
}  // namespace

OP_SPEC(diagonal_scan) {
  // Lengths in one block, and beside a sequence that is cut into segments on a GPU.
  auto ragged = [](const std::vector<size_t>& tokens) {
    std::vector<std::pair<std::string, Packed>> cases = packed_cases(tokens);
    cases.push_back({"ragged-long", {{20, 150, 0, 1}, 173, 160, tokens}});
    return cases;
  };
  // Plain. An error lives on for 1 / (1 - a) steps, 5 of a within 0.8, or t. bf16: the result is rounded
  // once; on the way back so is the state that a's gradient reads.
  auto plain = [&](const char* name, int64_t b, int64_t t, int64_t h, int64_t w) -> Sample& {
    double memory = double(std::min<int64_t>(t, 5));
    return spec
        .sample(
            name, {uniform({b, t, h, 2, w}, -0.8, 0.8), randn({b, t, h, 2, w})},
            [](const std::vector<Tensor>& in) { return std::vector{occam::diagonal_scan(in[0], in[1])}; },
            naive_plain)
        .conditioned(memory)
        .sum_length(memory)
        .half_roundings(2);
  };
  auto plain_steps = [](const std::vector<Tensor>& in) { return std::vector{plain_by_step(in[0], in[1])}; };
  plain("2x5x3x4", 2, 5, 3, 4).small().same_as(plain_steps);
  plain("1x1x1x1", 1, 1, 1, 1).small();
  plain("3x7x1x5", 3, 7, 1, 5).small().same_as(plain_steps);
  plain("1x33x2x130", 1, 33, 2, 130);
  plain("1x300x1x6", 1, 300, 1, 6);
  plain("no-images", 0, 4, 2, 3);
  plain("no-tokens", 2, 0, 2, 3);
  for (const auto& [name, p] : ragged({0, 1})) {
    const double memory = double(std::min<int64_t>(p.longest, 5));
    Sample& sample = spec.sample(
        name, {p.rows(uniform({p.n, 2, 2, 4}, -0.8, 0.8)), p.rows(randn({p.n, 2, 2, 4})), p.offsets()},
        [p = p](const std::vector<Tensor>& in) {
          return std::vector{occam::diagonal_scan(in[0], in[1], p.sequences(in[2]))};
        },
        p.naive(naive_plain));
    sample.conditioned(memory).sum_length(memory).half_roundings(2);
    if (p.n <= 12) sample.small();
    if (p.used() > 0)
      sample.same_as(p.alone(
          [](const std::vector<Tensor>& in) { return std::vector{occam::diagonal_scan(in[0], in[1])}; }));
  }

  for (GatedCell cell : {GatedCell::min_gru, GatedCell::min_lstm}) {
    const int64_t k = occam::gates_of(cell);
    const std::string kind = cell == GatedCell::min_gru ? "gru-" : "lstm-";
    // 1 - a is near 1/2 for gates of about 1: an error is remembered for about 2 steps, for 1 / s(-3) = 21 at
    // the gates' tails, rarely: 4 in the mean over channels. Derivatives of the gates are at most 1.
    auto memory_of = [](int64_t t) { return double(std::min<int64_t>(t, 4)); };
    auto gated = [&](const char* name, int64_t b, int64_t t, int64_t h, int64_t w) -> Sample& {
      return spec
          .sample(
              kind + name, {off_the_kink({b, t, h, 2, k * w})},
              [cell](const std::vector<Tensor>& in) { return std::vector{occam::gated_scan(in[0], cell)}; },
              [cell, k](const Arrays& in) -> Arrays {
                const occam::Shape& s = in[0].shape;
                return {
                    naive_gated(s[0], s[1], s[2], s[4] / k, cell, [&](auto... i) { return in[0](i...); })};
              })
          .conditioned(memory_of(t))
          .sum_length(memory_of(t))
          .half_roundings(2);
    };
    auto gated_steps = [cell](const std::vector<Tensor>& in) {
      return std::vector{gated_by_step(in[0], cell)};
    };
    gated("2x4x2x3", 2, 4, 2, 3).small().same_as(gated_steps);
    gated("1x1x1x1", 1, 1, 1, 1).small();
    gated("3x6x1x9", 3, 6, 1, 9).small().same_as(gated_steps);
    gated("1x150x2x64", 1, 150, 2, 64);
    gated("no-tokens", 2, 0, 2, 3);
    for (const auto& [name, p] : ragged({0})) {
      Sample& sample = spec.sample(
          kind + name, {p.rows(off_the_kink({p.n, 1, 2, k * 3})), p.offsets()},
          [cell, p = p](const std::vector<Tensor>& in) {
            return std::vector{occam::gated_scan(in[0], cell, p.sequences(in[1]))};
          },
          p.naive([cell, k](const Arrays& in) -> Arrays {
            const occam::Shape& s = in[0].shape;
            return {naive_gated(s[0], s[1], s[2], s[4] / k, cell, [&](auto... i) { return in[0](i...); })};
          }));
      sample.conditioned(memory_of(p.longest)).sum_length(memory_of(p.longest)).half_roundings(2);
      if (p.used() > 0)
        sample.same_as(p.alone(
            [cell](const std::vector<Tensor>& in) { return std::vector{occam::gated_scan(in[0], cell)}; }));
    }

    // By head. bf16: y is rounded once; without the fused kernel the gates (about 1) are rounded before their
    // activation, on the way back they, their gradients and the products are.
    auto head = [&](const char* name, int64_t b, int64_t t, int64_t h, int64_t i, int64_t w) -> Sample& {
      const double scale = 1 / std::sqrt(double(i)), memory = double(std::min<int64_t>(t, w == 64 ? 21 : 4));
      return spec
          .sample(
              kind + "head-" + name,
              {randn({b, t, h, i}), uniform({2, h, k * w, i}, -scale, scale), bias_of(h, k, w, w == 64)},
              [cell](const std::vector<Tensor>& in) {
                return std::vector{occam::head_gated_scan(in[0], in[1], in[2], cell)};
              },
              [cell, k](const Arrays& in) -> Arrays {
                const Array gates = naive_gates(in[0], in[1], in[2]);
                return {naive_gated(gates.size(0), gates.size(1), gates.size(2), gates.size(4) / k, cell,
                                    [&](auto... i) { return gates(i...); })};
              })
          .conditioned(memory)
          .sum_length(double(std::max(i, b * t)))
          .half_roundings(2 * memory);
    };
    auto head_steps = [cell](const std::vector<Tensor>& in) {
      return std::vector{head_by_step(in[0], in[1], in[2], cell)};
    };
    head("2x4x2x3x2", 2, 4, 2, 3, 2).small().same_as(head_steps);
    head("1x1x1x1x1", 1, 1, 1, 1, 1).small();
    head("3x5x1x4x7", 3, 5, 1, 4, 7).small().same_as(head_steps);
    // The fused kernel: segments of one image, whole images, just past a tile, a group that is not full.
    head("1x1x2x64x64", 1, 1, 2, 64, 64);
    head("1x35x1x64x64", 1, 35, 1, 64, 64);
    head("5x16x1x64x64", 5, 16, 1, 64, 64);
    head("35x17x8x64x64", 35, 17, 8, 64, 64).no_gradient();
    head("no-images", 0, 4, 2, 3, 2);
    head("no-tokens", 2, 0, 2, 3, 2);
    // The last for the fused kernel: a group of units that is not full, one that ends a stage.
    auto by_head = ragged({0});
    by_head.push_back({"ragged-64", {{9, 0, 17, 1, 8}, 38, 17, {0}}});
    for (const auto& [name, p] : by_head) {
      const bool wide = name == "ragged-64";
      const int64_t h = wide ? 1 : 2, i = wide ? 64 : 3, w = wide ? 64 : 2;
      const double scale = 1 / std::sqrt(double(i)), memory = double(std::min<int64_t>(p.longest, 21));
      auto padded = [cell](const std::vector<Tensor>& in) {
        return std::vector{occam::head_gated_scan(in[0], in[1], in[2], cell)};
      };
      Sample& sample = spec.sample(
          kind + "head-" + name,
          {p.rows(randn({p.n, h, i})), uniform({2, h, k * w, i}, -scale, scale), bias_of(h, k, w, true),
           p.offsets()},
          [cell, p = p](const std::vector<Tensor>& in) {
            return std::vector{occam::head_gated_scan(in[0], in[1], in[2], cell, p.sequences(in[3]))};
          },
          p.naive([cell, k](const Arrays& in) -> Arrays {
            const Array gates = naive_gates(in[0], in[1], in[2]);
            return {naive_gated(gates.size(0), gates.size(1), gates.size(2), gates.size(4) / k, cell,
                                [&](auto... i) { return gates(i...); })};
          }));
      sample.conditioned(memory).sum_length(double(std::max<int64_t>(i, p.n))).half_roundings(2 * memory);
      if (p.n <= 12) sample.small();
      if (p.used() > 0) sample.same_as(p.alone(padded));
    }
  }

  // Forward in one kernel where no gradient is recorded: whole images, segments of them, a stage that is not
  // full.
  auto project = [&](const char* name, GatedCell cell, int64_t b, int64_t t, int64_t h, int64_t i, int64_t w,
                     int64_t o, bool with_bias) -> Sample& {
    const int64_t k = occam::gates_of(cell);
    const double scale = 1 / std::sqrt(double(i)), out_scale = 1 / std::sqrt(double(2 * w)),
                 memory = double(std::min<int64_t>(t, w == 64 ? 21 : 4));
    return spec
        .sample(
            std::string("project-") + name,
            {randn({b, t, h, i}), uniform({2, h, k * w, i}, -scale, scale), bias_of(h, k, w, w == 64),
             uniform({h, o, 2 * w}, -out_scale, out_scale), with_bias ? uniform({h, o}, -1, 1) : absent()},
            [cell](const std::vector<Tensor>& in) {
              return std::vector{occam::head_gated_scan_project(in[0], in[1], in[2], in[3], in[4], cell)};
            },
            [cell](const Arrays& in) -> Arrays { return {naive_project(in, cell)}; })
        .conditioned(memory)
        .sum_length(double(std::max(i + 2 * w, b * t)))
        // As by head, and the states, a share and the result are rounded, whose terms are larger than itself.
        .half_roundings(2 * memory + 3);
  };
  project("2x5x3x4x3x2", GatedCell::min_gru, 2, 5, 3, 4, 3, 2, true).small();
  project("2x3x1x2x2x2", GatedCell::min_lstm, 2, 3, 1, 2, 2, 2, false).small();
  project("6x16x66x64x64x64", GatedCell::min_gru, 6, 16, 66, 64, 64, 64, true).no_gradient();
  project("2x21x132x64x64x64", GatedCell::min_lstm, 2, 21, 132, 64, 64, 64, false).no_gradient();
  project("3x43x2x64x64x64", GatedCell::min_gru, 3, 43, 2, 64, 64, 64, true).no_gradient();
  auto project_ragged = [&](const std::string& name, const Packed& p) -> Sample& {
    const double scale = 1 / std::sqrt(3.0), memory = double(std::min<int64_t>(p.longest, 4));
    return spec
        .sample(
            "project-" + name,
            {p.rows(randn({p.n, 2, 3})), uniform({2, 2, 4, 3}, -scale, scale), uniform({2, 2, 4}, -1, 1),
             uniform({2, 3, 4}, -0.5, 0.5), uniform({2, 3}, -1, 1), p.offsets()},
            [p](const std::vector<Tensor>& in) {
              return std::vector{occam::head_gated_scan_project(in[0], in[1], in[2], in[3], in[4],
                                                                GatedCell::min_gru, p.sequences(in[5]))};
            },
            p.naive([](const Arrays& in) -> Arrays { return {naive_project(in, GatedCell::min_gru)}; }))
        .conditioned(memory)
        .sum_length(double(std::max<int64_t>(7, p.n)))
        .half_roundings(2 * memory + 3);
  };
  const auto packed = ragged({0});
  for (const auto& [name, p] : packed) project_ragged(name, p).no_gradient();
  // With gradients these are ops of their own, each of which rounds to bf16 and is tried in it above.
  project_ragged("grad-ragged", packed[0].second)
      .no_half()
      .small()
      .same_as(packed[0].second.alone([](const std::vector<Tensor>& in) {
        return std::vector{
            occam::head_gated_scan_project(in[0], in[1], in[2], in[3], in[4], GatedCell::min_gru)};
      }));

  spec.bad(
      "longest",
      [] {
        Tensor a = occam::zeros({4, 1, 2, 3});
        occam::diagonal_scan(a, a, {occam::from_vector(std::vector<int32_t>{0, 3}), 2});
      },
      "diagonal_scan: sequence 0 has 3 rows, the longest 2");
  spec.bad(
      "gates",
      [] {
        occam::gated_scan(occam::zeros({1, 2, 1, 2, 7}), GatedCell::min_gru);
      },
      "gated_scan: gates [1,2,1,2,7] do not divide into 2 of one width");
  spec.bad(
      "rows",
      [] {
        occam::head_gated_scan(occam::zeros({1, 2, 1, 3}), occam::zeros({2, 1, 7, 3}),
                               occam::zeros({2, 1, 7}), GatedCell::min_lstm);
      },
      "head_gated_scan: w [2,1,7,3] has 7 gate rows, which do not divide into 3 of one width");
  spec.bad(
      "heads",
      [] {
        occam::head_gated_scan(occam::zeros({1, 2, 2, 3}), occam::zeros({2, 1, 6, 3}),
                               occam::zeros({2, 1, 6}), GatedCell::min_gru);
      },
      "head_gated_scan: axis `h` is 2 in x [1,2,2,3] but 1 in w [2,1,6,3]");
}
