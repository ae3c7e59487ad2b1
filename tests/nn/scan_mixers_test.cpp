// Mixers that stand on linear scans: their recurrences in f64, and options beyond what every mixer is asked.
#include <complex>

#include "nn/plan.h"
#include "tests/core/expect_error.h"
#include "tests/nn/golden.h"

namespace occam {
namespace {

/// Where `step` of direction r is among t tokens.
int64_t place(int64_t r, int64_t step, int64_t t) { return r == 0 ? step : t - 1 - step; }

double positive(double v) { return v >= 0 ? v + 0.5 : sigmoid(v); }

TEST(ScanMixers, MinGruAndMinLstmEqualTheirRecurrences) {
  const int64_t k = 5;
  for (const char* name : {"mingru", "minlstm"}) {
    SCOPED_TRACE(name);
    const int64_t gates = name == std::string("mingru") ? 2 : 3;
    Golden g(name, {12, 3}, 9, {{"hidden", "5"}});
    const std::vector<Vector> u = g.pre();
    Vector out(size_t(g.t * g.h * 2 * k));
    for (int64_t r = 0; r < 2; ++r)
      for (int64_t head = 0; head < g.h; ++head) {
        Vector state(size_t(k), 0.0);
        for (int64_t step = 0; step < g.t; ++step) {
          const int64_t t = place(r, step, g.t);
          const Vector z = g.layer(g.of("rnn.weight"), g.of("rnn.bias"), r * g.h + head, 2 * g.h,
                                   u[size_t(t)].data() + head * g.w, g.w);
          for (int64_t j = 0; j < k; ++j) {
            auto gate = [&](int64_t which) { return z[size_t(which * k + j)]; };
            const double keep =
                gates == 2 ? 1 - sigmoid(gate(0)) : sigmoid(gate(0)) / (sigmoid(gate(0)) + sigmoid(gate(1)));
            double& h = state[size_t(j)];
            h = keep * h + (1 - keep) * positive(gate(gates - 1));
            out[size_t((t * g.h + head) * 2 * k + r * k + j)] = h;
          }
        }
      }
    g.expect_heads(out);
  }
}

TEST(ScanMixers, S4dEqualsItsConvolution) {
  const int64_t states = 5;
  Golden g("s4d", {12, 3}, 9, {{"state", "5"}});
  const std::vector<Vector> u = g.pre();
  Vector out(size_t(g.t * g.d * 2));
  for (int64_t r = 0; r < 2; ++r)
    for (int64_t c = 0; c < g.d; ++c) {
      const int64_t channel = r * g.d + c;
      Vector kernel;
      for (int64_t l = 0; l < g.t; ++l) {
        std::complex<double> sum = 0;
        for (int64_t n = channel * states; n < (channel + 1) * states; ++n) {
          const std::complex<double> a(-std::exp(g.at("ssm.a_log", n)), g.at("ssm.a_im", n)),
              weight(g.at("ssm.out", 2 * n), g.at("ssm.out", 2 * n + 1));
          const double dt = std::exp(g.at("ssm.log_dt", channel));
          sum += weight * (std::exp(dt * a) - 1.0) / a * std::exp(double(l) * dt * a);
        }
        kernel.push_back(2 * sum.real());
      }
      for (int64_t step = 0; step < g.t; ++step) {
        const int64_t t = place(r, step, g.t);
        double y = g.at("ssm.skip", channel) * u[size_t(t)][size_t(c)];
        for (int64_t l = 0; l <= step; ++l)
          y += kernel[size_t(l)] * u[size_t(place(r, step - l, g.t))][size_t(c)];
        out[size_t((t * g.h + c / g.w) * 2 * g.w + r * g.w + c % g.w)] =
            0.5 * y * (1 + std::erf(y / std::sqrt(2.0)));
      }
    }
  g.expect_heads(out);
}

TEST(ScanMixers, MambaEqualsItsRecurrence) {
  const int64_t states = 3, rank = 2, taps = 3, selected = rank + 2 * states;
  Golden g("mamba", {12, 3}, 9, {{"state", "3"}, {"dt_rank", "2"}, {"conv", "3"}});
  std::vector<Vector> both;  // x beside z of every token
  for (int64_t t = 0; t < g.t; ++t)
    both.push_back(g.linear(g.of("ssm.in_proj.weight"), {}, g.input.data() + t * g.d, g.d));
  const std::string scan = "ssm.scan.";
  Vector out(size_t(g.t * g.d * 2));
  for (int64_t r = 0; r < 2; ++r) {
    Vector state(size_t(g.d * states), 0.0);
    for (int64_t step = 0; step < g.t; ++step) {
      const int64_t t = place(r, step, g.t);
      Vector u;
      for (int64_t c = 0; c < g.d; ++c) {
        double sum = g.at(scan + "conv_bias", r * g.d + c);
        for (int64_t i = 0; i < taps; ++i)
          if (const int64_t from = step - (taps - 1) + i; from >= 0)
            sum += g.at(scan + "conv_weight", (r * g.d + c) * taps + i) *
                   both[size_t(place(r, from, g.t))][size_t(c)];
        u.push_back(silu(sum));
      }
      const Vector dbc = g.layer(g.of(scan + "x_proj"), {}, r, 2, u.data(), g.d);
      ASSERT_EQ(int64_t(dbc.size()), selected);
      const Vector delta = g.layer(g.of(scan + "dt_proj"), g.of(scan + "dt_bias"), r, 2, dbc.data(), rank);
      for (int64_t c = 0; c < g.d; ++c) {
        const double dt = softplus(delta[size_t(c)]);
        double y = g.at(scan + "skip", r * g.d + c) * u[size_t(c)];
        for (int64_t n = 0; n < states; ++n) {
          double& h = state[size_t(c * states + n)];
          const double rate = std::exp(g.at(scan + "a_log", (r * g.d + c) * states + n));
          h = std::exp(-dt * rate) * h + dt * dbc[size_t(rank + n)] * u[size_t(c)];
          y += dbc[size_t(rank + states + n)] * h;
        }
        out[size_t((t * g.h + c / g.w) * 2 * g.w + r * g.w + c % g.w)] =
            y * silu(both[size_t(t)][size_t(g.d + c)]);
      }
    }
  }
  g.expect_heads(out);
}

void expect_ledger(const char* name, const MixerShape& s, const MixerOptions& options) {
  const int64_t t = s.tokens();
  auto mixer = make_mixer(name, s, options);
  const MixerLedger ledger = find_mixer(name).ledger(s, t, options);
  EXPECT_EQ(mixer->parameter_count(), ledger.params) << name;
  EXPECT_EQ(plan_of(*mixer, {1, t, s.dim}).total().macs, ledger.macs) << name;
}

TEST(ScanMixers, LedgersOfOptions) {
  const MixerShape s{24, 2, 3, 4, 1};
  for (const char* name : {"mingru", "minlstm"}) {
    expect_ledger(name, s, {{"hidden", "5"}});
    expect_ledger(name, s, {{"gates", "dense"}, {"hidden", "7"}});
  }
  expect_ledger("mamba", s, {{"cross_scan", "true"}, {"state", "3"}, {"dt_rank", "5"}, {"conv", "2"}});
  expect_ledger("s4d", s, {{"state", "5"}});
}

TEST(ScanMixers, PublishedMinGruParameters) {
  // 2 c^2 + 391 c and 2 c^2 + 521 c for heads of 64.
  EXPECT_EQ(find_mixer("mingru").ledger({384, 6}, 197, {}).params, 2 * 384 * 384 + 391 * 384);
  EXPECT_EQ(find_mixer("minlstm").ledger({384, 6}, 197, {}).params, 2 * 384 * 384 + 521 * 384);
  EXPECT_EQ(find_mixer("mingru").ledger({384, 6}, 197, {}).sequential_depth, 9);
  EXPECT_EQ(find_mixer("mingru").ledger({384, 6}, 1, {}).sequential_depth, 1);
}

// Dense gates with a block-diagonal matrix are gates by head: rows by (head, direction, gate, state) against
// [direction, head, gate state].
TEST(ScanMixers, DenseGatesContainGatesByHead) {
  const MixerShape s{12, 3};
  const int64_t w = 4, rows = 2 * w;
  auto by_head = make_mixer("mingru", s), dense = make_mixer("mingru", s, {{"gates", "dense"}});
  rule::fill(*by_head, "by_head");
  std::map<std::string, Parameter*> from, to;
  for (auto& [name, p] : by_head->named_parameters()) from[name] = p;
  for (auto& [name, p] : dense->named_parameters()) to[name] = p;
  for (auto& [name, p] : to)
    if (name.rfind("rnn.", 0) != 0) p->set_values(from[name]->master());
  const auto weight = from["rnn.weight"]->master().to_vector<float>(),
             bias = from["rnn.bias"]->master().to_vector<float>();
  std::vector<float> wide(size_t(3 * 2 * rows * 12), 0.0f), wide_bias(size_t(3 * 2 * rows));
  for (int64_t r = 0; r < 2; ++r)
    for (int64_t h = 0; h < 3; ++h)
      for (int64_t j = 0; j < rows; ++j) {
        const int64_t row = (h * 2 + r) * rows + j, source = (r * 3 + h) * rows + j;
        wide_bias[size_t(row)] = bias[size_t(source)];
        for (int64_t i = 0; i < w; ++i) wide[size_t(row * 12 + h * w + i)] = weight[size_t(source * w + i)];
      }
  to["rnn.weight"]->set_values(from_vector(wide, to["rnn.weight"]->shape()));
  to["rnn.bias"]->set_values(from_vector(wide_bias, to["rnn.bias"]->shape()));
  NoGrad no_grad;
  const Tensor x = rule::tensor("scan_mixers/x", {2, 9, 12}, 0, 1.5);
  const auto a = (*by_head)(x).to_vector<float>(), b = (*dense)(x).to_vector<float>();
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-5) << i;
}

// Four routes see a grid and its transpose alike: with the parameters of rows and columns exchanged, the
// transposed image gives the transposed result.
TEST(ScanMixers, CrossScanIsSymmetric) {
  const MixerShape wide{8, 2, 2, 3, 1}, tall{8, 2, 3, 2, 1};
  const MixerOptions options{{"cross_scan", "true"}};
  auto a = make_mixer("mamba", wide, options), b = make_mixer("mamba", tall, options);
  rule::fill(*a, "cross");
  std::map<std::string, Parameter*> from;
  for (auto& [name, p] : a->named_parameters()) from[name] = p;
  auto exchanged = [](std::string name) {
    const std::string rows = "ssm.scan.", columns = "ssm.columns.";
    if (name.rfind(rows, 0) == 0) return columns + name.substr(rows.size());
    if (name.rfind(columns, 0) == 0) return rows + name.substr(columns.size());
    return name;
  };
  for (auto& [name, p] : b->named_parameters()) p->set_values(from.at(exchanged(name))->master());
  const Tensor x = rule::tensor("scan_mixers/grid", {1, 7, 8}, 0, 1.5);
  Tensor turned = raw::clone(x);
  auto place = [](int64_t i) {
    return i == 0 ? 0 : 1 + (i - 1) % 3 * 2 + (i - 1) / 3;
  };  // of token i in `tall`
  for (int64_t i = 0; i < 7; ++i)
    for (int64_t c = 0; c < 8; ++c) turned.data<float>()[place(i) * 8 + c] = x.data<float>()[i * 8 + c];
  NoGrad no_grad;
  const auto y = (*a)(x).to_vector<float>(), z = (*b)(turned).to_vector<float>();
  for (int64_t i = 0; i < 7; ++i)
    for (int64_t c = 0; c < 8; ++c)
      ASSERT_NEAR(y[size_t(i * 8 + c)], z[size_t(place(i) * 8 + c)], 1e-5) << i << " " << c;
}

TEST(ScanMixers, WrongOptions) {
  EXPECT_OCCAM_ERROR(make_mixer("mingru", {8, 2}, {{"gates", "wide"}}), ErrorKind::usage, "gates");
  EXPECT_OCCAM_ERROR(make_mixer("mamba", {8, 2, 2, 2, 1}, {{"cross_scan", "true"}, {"scan", "column"}}),
                     ErrorKind::usage, "cross_scan has rows and columns");
  EXPECT_OCCAM_ERROR(make_mixer("mamba", {8, 2}, {{"cross_scan", "true"}}), ErrorKind::usage, "grid");
}

}  // namespace
}  // namespace occam
