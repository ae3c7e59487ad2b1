#include "ops/lstm/op.h"

#include <cmath>

#include "ops/activation/op.h"
#include "ops/concat/op.h"
#include "ops/elementwise/op.h"
#include "ops/linear/op.h"
#include "ops/ragged_spec.h"
#include "ops/slice/op.h"
#include "ops/spec.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Tensor;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// Row `index` of all rows of the last axis.
const double* row(const Array& a, int64_t index) { return a.v.data() + index * a.size(a.shape.rank() - 1); }

Arrays naive(const Arrays& in) {
  const Array &x = in[0], &w_ih = in[1], &w_hh = in[2], &b_ih = in[3], &b_hh = in[4];
  int64_t b = x.size(0), t = x.size(1), heads = x.size(2), width = x.size(3), w = w_hh.size(3);
  Array y({b, t, heads, 2 * w});
  for (int64_t r = 0; r < 2; ++r)
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t n = 0; n < b; ++n) {
        std::vector<double> h(size_t(w), 0.0), c(size_t(w), 0.0);
        for (int64_t s = 0; s < t; ++s) {
          int64_t token = r == 0 ? s : t - 1 - s;
          std::vector<double> z(size_t(4 * w));
          for (int64_t j = 0; j < 4 * w; ++j) {
            const double *from_x = row(w_ih, (r * heads + head) * 4 * w + j),
                         *from_h = row(w_hh, (r * heads + head) * 4 * w + j),
                         *xt = row(x, (n * t + token) * heads + head);
            z[size_t(j)] = b_ih(r, head, j) + b_hh(r, head, j);
            for (int64_t i = 0; i < width; ++i) z[size_t(j)] += from_x[i] * xt[i];
            for (int64_t k = 0; k < w; ++k) z[size_t(j)] += from_h[k] * h[size_t(k)];
          }
          for (int64_t k = 0; k < w; ++k) {
            c[size_t(k)] = sigmoid(z[size_t(w + k)]) * c[size_t(k)] +
                           sigmoid(z[size_t(k)]) * std::tanh(z[size_t(2 * w + k)]);
            h[size_t(k)] = sigmoid(z[size_t(3 * w + k)]) * std::tanh(c[size_t(k)]);
            y(n, token, head, r * w + k) = h[size_t(k)];
          }
        }
      }
  return {y};
}

Arrays naive_gru(const Arrays& in) {
  const Array &x = in[0], &w_ih = in[1], &w_hh = in[2], &b_ih = in[3], &b_hh = in[4];
  int64_t b = x.size(0), t = x.size(1), heads = x.size(2), width = x.size(3), w = w_hh.size(3);
  Array y({b, t, heads, 2 * w});
  for (int64_t r = 0; r < 2; ++r)
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t n = 0; n < b; ++n) {
        std::vector<double> h(size_t(w), 0.0);
        for (int64_t s = 0; s < t; ++s) {
          int64_t token = r == 0 ? s : t - 1 - s;
          std::vector<double> of_x(size_t(3 * w)), of_h(size_t(3 * w));
          for (int64_t j = 0; j < 3 * w; ++j) {
            const double *from_x = row(w_ih, (r * heads + head) * 3 * w + j),
                         *from_h = row(w_hh, (r * heads + head) * 3 * w + j),
                         *xt = row(x, (n * t + token) * heads + head);
            of_x[size_t(j)] = b_ih(r, head, j), of_h[size_t(j)] = b_hh(r, head, j);
            for (int64_t i = 0; i < width; ++i) of_x[size_t(j)] += from_x[i] * xt[i];
            for (int64_t k = 0; k < w; ++k) of_h[size_t(j)] += from_h[k] * h[size_t(k)];
          }
          for (int64_t k = 0; k < w; ++k) {
            double reset = sigmoid(of_x[size_t(k)] + of_h[size_t(k)]),
                   stay = sigmoid(of_x[size_t(w + k)] + of_h[size_t(w + k)]),
                   fresh = std::tanh(of_x[size_t(2 * w + k)] + reset * of_h[size_t(2 * w + k)]);
            h[size_t(k)] = (1 - stay) * fresh + stay * h[size_t(k)];
            y(n, token, head, r * w + k) = h[size_t(k)];
          }
        }
      }
  return {y};
}

/// The same from plain ops, a step and a head at a time.
std::vector<Tensor> by_step(const std::vector<Tensor>& in, bool gru) {
  const Tensor& x = in[0];
  int64_t b = x.size(0), t = x.size(1), heads = x.size(2), width = x.size(3), w = in[2].size(3);
  auto part = [](const Tensor& p, int64_t r, int64_t head) {  // [2,h,...] -> [...]
    occam::Shape s = p.shape();
    Tensor one = occam::slice(occam::slice(p, 0, r, 1), 1, head, 1);
    return s.rank() == 4 ? occam::reshape(one, {s[2], s[3]}) : occam::reshape(one, {s[2]});
  };
  std::vector<Tensor> by_head;
  for (int64_t head = 0; head < heads; ++head) {
    std::vector<Tensor> directions;
    for (int64_t r = 0; r < 2; ++r) {
      Tensor h, c;
      std::vector<Tensor> states(static_cast<size_t>(t));
      for (int64_t s = 0; s < t; ++s) {
        int64_t token = r == 0 ? s : t - 1 - s;
        Tensor xt = occam::reshape(occam::slice(occam::slice(x, 1, token, 1), 2, head, 1), {b, width});
        if (!h) h = c = occam::zeros({b, w}, occam::options_of(x));
        Tensor of_x = occam::linear(xt, part(in[1], r, head), part(in[3], r, head)),
               of_h = occam::linear(h, part(in[2], r, head), part(in[4], r, head)), z = of_x + of_h;
        auto gate = [&](const Tensor& from, int64_t g) { return occam::slice(from, 1, g * w, w); };
        if (gru) {
          Tensor stay = occam::sigmoid(gate(z, 1));
          Tensor fresh = occam::tanh(gate(of_x, 2) + occam::sigmoid(gate(z, 0)) * gate(of_h, 2));
          h = fresh + stay * (h - fresh);
        } else {
          c = occam::sigmoid(gate(z, 1)) * c + occam::sigmoid(gate(z, 0)) * occam::tanh(gate(z, 2));
          h = occam::sigmoid(gate(z, 3)) * occam::tanh(c);
        }
        states[size_t(token)] = occam::reshape(h, {b, 1, 1, w});
      }
      directions.push_back(occam::concat(states, 1));
    }
    by_head.push_back(occam::concat(directions, 3));
  }
  return {occam::concat(by_head, 2)};
}
}  // namespace

OP_SPEC(lstm) {
  auto inputs = [](bool gru, const occam::Shape& x, int64_t w) -> std::vector<Input> {
    const int64_t h = x[-2], i = x[-1], rows = (gru ? 3 : 4) * w;
    const double k = 1 / std::sqrt(double(w));
    return {randn(x), uniform({2, h, rows, i}, -k, k), uniform({2, h, rows, w}, -k, k),
            uniform({2, h, rows}, -k, k), uniform({2, h, rows}, -k, k)};
  };
  auto call_of = [](bool gru) {
    return [op = gru ? occam::gru : occam::lstm](const std::vector<Tensor>& in) {
      return std::vector{op(in[0], in[1], in[2], in[3], in[4], {})};
    };
  };
  // A gate sums i + w products; an error made in one step lives on in the cell and, through weights of row
  // norm about 1, in the next gates: it adds up over the steps it is remembered for, at most t and with
  // forget gates near 1/2 rather 4, in the state and again in its gradient.
  // bf16: a step rounds h, which y is and the next step reads, and c, which backward reads; a step back
  // rounds dz, which the step before it and all products read. So 2 a step that is remembered, and one for
  // the GPU's tanh, five times a cell with a relative error of at most 2^-11, an eighth of a rounding.
  auto errors = [](Sample& sample, int64_t sum, int64_t t) -> Sample& {
    const double memory = double(std::min<int64_t>(t, 4));
    return sample.sum_length(double(sum)).conditioned(memory).half_roundings(3 * memory);
  };
  auto add_cell = [&](bool gru, std::string name, int64_t b, int64_t t, int64_t h, int64_t i,
                      int64_t w) -> Sample& {
    return errors(spec.sample((gru ? "gru-" : "") + name, inputs(gru, {b, t, h, i}, w), call_of(gru),
                              gru ? naive_gru : naive),
                  std::max(i + w, b * t), t);
  };
  auto add_ragged = [&](bool gru, std::string name, const Packed& packed, int64_t h, int64_t i,
                        int64_t w) -> Sample& {
    std::vector<Input> in = inputs(gru, {packed.n, h, i}, w);
    in[0] = packed.rows(in[0]);
    in.push_back(packed.offsets());
    auto call = [packed, op = gru ? occam::gru : occam::lstm](const std::vector<Tensor>& in) {
      return std::vector{op(in[0], in[1], in[2], in[3], in[4], packed.sequences(in[5]))};
    };
    return errors(spec.sample((gru ? "gru-" : "") + name, in, call, packed.naive(gru ? naive_gru : naive)),
                  std::max(i + w, packed.n), std::max<int64_t>(packed.longest, 1));
  };
  auto add = [&](std::string name, int64_t b, int64_t t, int64_t h, int64_t i, int64_t w) -> Sample& {
    return add_cell(false, name, b, t, h, i, w);
  };
  auto by_lstm_step = [](const std::vector<Tensor>& in) { return by_step(in, false); };
  auto by_gru_step = [](const std::vector<Tensor>& in) { return by_step(in, true); };
  add("2x4x2x3x2", 2, 4, 2, 3, 2).small().same_as(by_lstm_step);
  add("1x1x1x1x1", 1, 1, 1, 1, 1).small();
  add("3x5x1x4x7", 3, 5, 1, 4, 7).small().same_as(by_lstm_step);
  add("2x9x3x16x16", 2, 9, 3, 16, 16);
  add("1x50x2x32x24", 1, 50, 2, 32, 24);
  // More images than one task carries; a state wider than what a block keeps of the weights.
  add("67x3x1x8x8", 67, 3, 1, 8, 8);
  add("9x4x1x64x64", 9, 4, 1, 64, 64);
  add("2x3x1x5x130", 2, 3, 1, 5, 130);
  // Width 64 in bf16 has its own kernels: one step, an odd and an even number of them, fewer and more than x
  // has slots; few images, tiles of 8, whole and not. Many: tests/ops/lstm_fused_test.cpp.
  add("1x1x2x64x64", 1, 1, 2, 64, 64).small();
  add("3x17x1x64x64", 3, 17, 1, 64, 64);
  add("3x65x1x64x64", 3, 65, 1, 64, 64);
  add("5x7x3x64x64", 5, 7, 3, 64, 64);
  add("17x9x1x64x64", 17, 9, 1, 64, 64);
  add("no-images", 0, 4, 2, 3, 2);
  add("no-tokens", 2, 0, 2, 3, 2);
  add_cell(true, "2x4x2x3x2", 2, 4, 2, 3, 2).small().same_as(by_gru_step);
  add_cell(true, "1x1x1x1x1", 1, 1, 1, 1, 1).small();
  add_cell(true, "3x5x1x4x7", 3, 5, 1, 4, 7).small().same_as(by_gru_step);
  add_cell(true, "67x9x2x16x8", 67, 9, 2, 16, 8);
  add_cell(true, "2x3x1x5x130", 2, 3, 1, 5, 130);
  add_cell(true, "1x1x2x64x64", 1, 1, 2, 64, 64).small();
  add_cell(true, "3x17x1x64x64", 3, 17, 1, 64, 64);
  add_cell(true, "17x9x1x64x64", 17, 9, 1, 64, 64);
  add_cell(true, "no-images", 0, 4, 2, 3, 2);
  add_cell(true, "no-tokens", 2, 0, 2, 3, 2);
  for (bool gru : {false, true}) {
    for (const auto& [name, packed] : packed_cases({0})) {
      Sample& sample = add_ragged(gru, name, packed, 2, 3, 2).small();
      if (packed.used() > 0) sample.same_as(packed.alone(call_of(gru)));
    }
    // More sequences than a task or a block carries, the longest neither first nor last.
    std::vector<int64_t> many(70, 2);
    many[3] = 0, many[9] = 7, many[40] = 5, many[69] = 1;
    add_ragged(gru, "ragged-70", {many, 150, 9, {0}}, 1, 8, 8);
    // The kernels of width 64: tiles of 4 and of 8, whole and not, one of empty sequences.
    add_ragged(gru, "ragged-64-few", {{9, 0, 20}, 31, 20, {0}}, 2, 64, 64);
    add_ragged(gru, "ragged-64", {{17, 3, 0, 1, 44, 9, 10, 2, 30, 5}, 124, 50, {0}}, 1, 64, 64);
    add_ragged(gru, "ragged-64-empty-tile", {{0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0}, 3, 2, {0}}, 1, 64, 64);
  }
  auto call = [](occam::Shape x, occam::Shape ih, occam::Shape hh, bool gru = false) {
    return [=] {
      occam::Shape bias{2, ih[1], ih[2]};
      (gru ? occam::gru : occam::lstm)(occam::zeros(x), occam::zeros(ih), occam::zeros(hh),
                                       occam::zeros(bias), occam::zeros(bias), {});
    };
  };
  spec.bad("gru-gates", call({1, 2, 1, 3}, {2, 1, 8, 3}, {2, 1, 8, 2}, true),
           "gru: w_hh [2,1,8,2] has 8 gate rows for states of width 2; 3 x 2 are needed");
  spec.bad("gates", call({1, 2, 1, 3}, {2, 1, 12, 3}, {2, 1, 12, 4}),
           "lstm: w_hh [2,1,12,4] has 12 gate rows for states of width 4; 4 x 4 are needed");
  spec.bad("heads", call({1, 2, 2, 3}, {2, 1, 8, 3}, {2, 1, 8, 2}),
           "lstm: axis `h` is 2 in x [1,2,2,3] but 1 in w_ih [2,1,8,3]");
}
