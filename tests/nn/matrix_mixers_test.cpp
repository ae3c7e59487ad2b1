// Mixers with decaying matrix states against their recurrences in f64, a token and a head at a time.
#include "nn/plan.h"
#include "nn/vit/model.h"
#include "tests/nn/golden.h"

namespace occam {
namespace {

TEST(Mamba2, PublishedLedger) {
  struct Row {
    MixerShape shape;
    int64_t params, tokens;
    double giga;  // multiply-adds, three digits after the point
  };
  const MixerShape tiny{192, 3}, small{384, 6}, base{768, 12};
  for (const Row& r :
       {Row{tiny, 313426, 197, 0.081}, Row{tiny, 313426, 768, 0.315}, Row{small, 995236, 197, 0.234},
        Row{base, 3471688, 197, 0.761}, Row{base, 3471688, 577, 2.227}, Row{base, 3471688, 1025, 3.957}}) {
    const MixerLedger ledger = find_mixer("mamba2").ledger(r.shape, r.tokens, {});
    EXPECT_EQ(ledger.params, r.params);
    EXPECT_DOUBLE_EQ(std::round(double(ledger.macs) / 1e6) / 1e3, r.giga);
  }
  for (auto [name, millions] : {std::pair{"deit_tiny_patch16_224", 7.70},
                                {"deit_small_patch16_224", 26.90},
                                {"deit_base_patch16_224", 99.88}}) {
    VisionTransformer model(vit_shape(name));
    for (int64_t i = 0; i < 12; ++i) model.replace_mixer(i, {"mamba2", {}});
    EXPECT_DOUBLE_EQ(std::round(double(model.parameter_count()) / 1e4) / 100, millions);
  }
}

TEST(Mamba2, EqualsItsRecurrence) {
  const int64_t state = 5, taps = 3;
  Golden g("mamba2", {12, 3}, 7, {{"state", "5"}, {"conv", "3"}});
  const int64_t d = g.d, mixed = d + 2 * state, wide = d + mixed;
  Vector v(size_t(g.t * 2 * d), 0.0);
  for (int64_t r = 0; r < 2; ++r) {
    auto at = [&](int64_t step) { return r == 0 ? step : g.t - 1 - step; };
    std::vector<Vector> projected;
    for (int64_t step = 0; step < g.t; ++step) {
      Vector all = g.linear(g.of("ssm.in_proj.weight"), {}, g.input.data() + at(step) * d, d);
      projected.emplace_back(all.begin() + r * wide, all.begin() + (r + 1) * wide);
    }
    std::vector<double> states(size_t(d * state), 0.0);  // by channel of x
    for (int64_t step = 0; step < g.t; ++step) {
      Vector xbc;
      for (int64_t c = 0; c < mixed; ++c) {
        double sum = g.of("ssm.conv_bias")[size_t(r * mixed + c)];
        for (int64_t i = 0; i < taps; ++i)
          if (int64_t from = step - (taps - 1) + i; from >= 0)
            sum += g.of("ssm.conv_weight")[size_t((r * mixed + c) * taps + i)] *
                   projected[size_t(from)][size_t(d + c)];
        xbc.push_back(silu(sum));
      }
      const Vector steps = g.linear(g.of("ssm.dt_proj.weight"), {}, g.input.data() + at(step) * d, d);
      Vector y;
      double squares = 0;
      for (int64_t c = 0; c < d; ++c) {
        const size_t head = size_t(r * g.h + c / g.w);
        const double dt = softplus(steps[head] + g.of("ssm.dt_bias")[head]);
        double sum = g.of("ssm.skip")[head] * xbc[size_t(c)];
        for (int64_t n = 0; n < state; ++n) {
          double& s = states[size_t(c * state + n)];
          s = std::exp(-dt * std::exp(g.of("ssm.a_log")[head])) * s +
              dt * xbc[size_t(d + n)] * xbc[size_t(c)];
          sum += xbc[size_t(d + state + n)] * s;
        }
        y.push_back(sum * silu(projected[size_t(step)][size_t(c)]));
        squares += y.back() * y.back() / double(d);
      }
      for (int64_t c = 0; c < d; ++c)
        v[size_t((at(step) * g.h + c / g.w) * 2 * g.w + r * g.w + c % g.w)] =
            y[size_t(c)] / std::sqrt(squares + 1e-5) * g.of("ssm.norm_weight")[size_t(r * d + c)];
    }
  }
  g.expect_heads(v);
}

/// y = M x of every head, M written out: below the diagonal what direction 0 has, above it what direction 1
/// has, and on it a number of each token.
TEST(Mamba2, HydraIsAQuasiseparableMatrix) {
  const int64_t n = 5, taps = 3;
  Golden g("mamba2", {12, 3}, 7, {{"state", "5"}, {"conv", "3"}, {"variant", "hydra"}});
  const int64_t d = g.d, mixed = d + 4 * n;
  std::vector<Vector> z, xbc, dt, delta;
  for (int64_t t = 0; t < g.t; ++t) {
    const Vector all = g.linear(g.of("ssm.in_proj.weight"), {}, g.input.data() + t * d, d);
    z.emplace_back(all.begin(), all.begin() + d);
    dt.push_back(g.linear(g.of("ssm.dt_proj.weight"), {}, g.input.data() + t * d, d));
    for (size_t i = 0; i < dt.back().size(); ++i)
      dt.back()[i] = softplus(dt.back()[i] + g.of("ssm.dt_bias")[i]);
    Vector sums = g.of("ssm.conv_bias");
    for (int64_t c = 0; c < mixed; ++c)
      for (int64_t i = 0; i < taps; ++i) {
        const int64_t from = t - 1 + i;
        if (from < 0 || from >= g.t) continue;
        const Vector there = g.linear(g.of("ssm.in_proj.weight"), {}, g.input.data() + from * d, d);
        sums[size_t(c)] += g.of("ssm.conv_weight")[size_t(c * taps + i)] * there[size_t(d + c)];
      }
    for (double& s : sums) s = silu(s);
    delta.push_back(g.linear(g.of("ssm.diagonal.weight"), g.of("ssm.diagonal.bias"), sums.data(), d));
    xbc.push_back(sums);
  }
  Vector v(size_t(g.t * d), 0.0);
  for (int64_t head = 0; head < g.h; ++head)
    for (int64_t i = 0; i < g.t; ++i)
      for (int64_t j = 0; j < g.t; ++j) {
        double weight = delta[size_t(i)][size_t(head)];
        if (i != j) {
          const int64_t r = i > j ? 0 : 1, of_head = r * g.h + head, keys = d + r * 2 * n;
          weight = dt[size_t(j)][size_t(of_head)];
          // The decays behind j up to i, in the direction's order.
          for (int64_t m = i; m != j; m += r == 0 ? -1 : 1)
            weight *= std::exp(-dt[size_t(m)][size_t(of_head)] * std::exp(g.at("ssm.a_log", of_head)));
          double product = 0;
          for (int64_t a = 0; a < n; ++a)
            product += xbc[size_t(i)][size_t(keys + n + a)] * xbc[size_t(j)][size_t(keys + a)];
          weight *= product;
        }
        for (int64_t c = head * g.w; c < (head + 1) * g.w; ++c)
          v[size_t(i * d + c)] += weight * xbc[size_t(j)][size_t(c)];
      }
  for (int64_t t = 0; t < g.t; ++t) {
    double squares = 0;
    for (int64_t c = 0; c < d; ++c) {
      double& y = v[size_t(t * d + c)];
      y *= silu(z[size_t(t)][size_t(c)]);
      squares += y * y / double(d);
    }
    for (int64_t c = 0; c < d; ++c)
      v[size_t(t * d + c)] *= g.of("ssm.norm_weight")[size_t(c)] / std::sqrt(squares + 1e-5);
  }
  g.expect_heads(v);
}

TEST(Mamba2, NewStepsAndRates) {
  auto mixer = make_mixer("mamba2", {192, 96});
  initialize(*mixer, 3);
  for (auto& [path, p] : mixer->named_parameters()) {
    const auto values = p->master().to_vector<double>();
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    if (path == "ssm.dt_bias") {
      EXPECT_GE(softplus(*least), 0.000999);
      EXPECT_LE(softplus(*most), 0.1001);
      EXPECT_LT(softplus(*least), 0.0015);
      EXPECT_GT(softplus(*most), 0.07);
    }
    if (path == "ssm.a_log") {
      EXPECT_GE(std::exp(*least), 1);
      EXPECT_LE(std::exp(*most), 16.001);
      EXPECT_LT(std::exp(*least), 2);
      EXPECT_GT(std::exp(*most), 15);
    }
  }
}

/// Of a mixer on the whole skeleton: pre's output by head, and q, k, v of a token and head.
struct Qkv {
  Golden& g;
  std::string core;
  int64_t n;
  std::vector<Vector> u;  // by token [c]

  Qkv(Golden& golden, std::string name, int64_t key)
      : g(golden), core(std::move(name)), n(key), u(golden.pre()) {}
  /// A grouped layer [h, out, w] applied to a token and head.
  Vector layer(const std::string& path, int64_t t, int64_t head) const {
    const std::string at = core + "." + path;
    return g.layer(g.of(at + ".weight"), g.of(at + ".bias"), head, g.h, u[size_t(t)].data() + head * g.w,
                   g.w);
  }
  Vector part(int64_t t, int64_t head, int64_t start, int64_t length) const {
    const Vector all = layer("qkv", t, head);
    return Vector(all.begin() + start, all.begin() + start + length);
  }
  Vector q(int64_t t, int64_t head) const { return part(t, head, 0, n); }
  Vector k(int64_t t, int64_t head) const { return part(t, head, n, n); }
  Vector v(int64_t t, int64_t head) const { return part(t, head, 2 * n, g.w); }
};

double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

TEST(Retention, EqualsItsMatrix) {
  Golden g("retention", {12, 3}, 9, {{"key", "6"}});
  Qkv x(g, "retain", 6);
  Vector out;
  for (int64_t i = 0; i < g.t; ++i)
    for (int64_t head = 0; head < g.h; ++head) {
      const double gamma = 1 - std::pow(2.0, -5 - 2.0 * double(head));  // 2^-5 to 2^-9 over three heads
      double sum = 0;
      Vector y(size_t(g.w), 0.0);
      for (int64_t j = 0; j < g.t; ++j) {
        const double weight =
            std::pow(gamma, double(std::abs(i - j))) * dot(x.q(i, head), x.k(j, head)) / std::sqrt(6);
        sum += std::pow(gamma, double(std::abs(i - j)));
        for (int64_t c = 0; c < g.w; ++c) y[size_t(c)] += weight * x.v(j, head)[size_t(c)];
      }
      for (double value : y) out.push_back(value / std::sqrt(sum));
    }
  g.expect_heads(out);
}

TEST(LinearAttention, EqualsItsMatrix) {
  for (const char* feature : {"elu", "relu", "none"})
    for (const char* gate : {"none", "decay"}) {
      SCOPED_TRACE(std::string(feature) + " " + gate);
      Golden g("linear_attention", {12, 2}, 8, {{"feature", feature}, {"gate", gate}});
      Qkv x(g, "linear", g.w);
      auto map = [&](Vector values) {
        for (double& e : values)
          e = feature[0] == 'e' ? (e > 0 ? e + 1 : std::exp(e)) : feature[0] == 'r' ? std::max(e, 0.0) : e;
        return values;
      };
      Vector out;
      for (int64_t i = 0; i < g.t; ++i)
        for (int64_t head = 0; head < g.h; ++head) {
          Vector y(size_t(g.w), 0.0);
          double sum = 0;
          for (int64_t j = 0; j < g.t; ++j) {
            double weight = dot(map(x.q(i, head)), map(x.k(j, head)));
            if (feature[0] == 'n') weight /= std::sqrt(double(g.w));
            // Decays between j and i, of the direction that leads from j to i; i's own included.
            const size_t r = j <= i ? 0 : 1, which = r * size_t(g.h) + size_t(head);
            for (int64_t m = i; m != j && gate[0] == 'd'; m += r == 0 ? -1 : 1)
              weight *= std::exp(-std::exp(g.of("linear.a_log")[which]) *
                                 softplus(x.layer("gate", m, head)[r] + g.of("linear.gate_bias")[which]));
            sum += weight;
            for (int64_t c = 0; c < g.w; ++c) y[size_t(c)] += weight * x.v(j, head)[size_t(c)];
          }
          for (double value : y)
            out.push_back(value / std::max(std::abs(sum), feature[0] == 'n' ? 1.0 : 0.01));
        }
      g.expect_heads(out);
    }
}

TEST(MLstm, EqualsItsRecurrence) {
  Golden g("mlstm", {12, 3}, 9, {{"key", "5"}});
  // Input gates up to e^6: the normaliser is above its floor for some tokens and below it for others.
  for (auto& [path, p] : g.mixer->named_parameters())
    if (path == "cell.gates.weight") p->set_values(rule::tensor("mlstm/gates", p->shape(), 0, 4));
  g.read_values();
  Qkv x(g, "cell", 5);
  Vector out(size_t(g.t * g.d * 2));
  int above = 0, below = 0;
  for (int64_t r = 0; r < 2; ++r)
    for (int64_t head = 0; head < g.h; ++head) {
      Vector memory(size_t(g.w * x.n), 0.0), sums(size_t(x.n), 0.0);
      for (int64_t step = 0; step < g.t; ++step) {
        const int64_t t = r == 0 ? step : g.t - 1 - step;
        auto gate = [&](int64_t which) {
          return x.layer("gates", t, head)[size_t(which * 2 + r)] +
                 g.of("cell.gate_bias")[size_t((which * 2 + r) * g.h + head)];
        };
        const double i = std::exp(gate(0)), f = sigmoid(gate(1));
        const Vector q = x.q(t, head), k = x.k(t, head), v = x.v(t, head), o = x.layer("output", t, head);
        for (int64_t a = 0; a < x.n; ++a) {
          const double key = i * k[size_t(a)] / std::sqrt(double(x.n));
          sums[size_t(a)] = f * sums[size_t(a)] + key;
          for (int64_t c = 0; c < g.w; ++c) {
            double& m = memory[size_t(c * x.n + a)];
            m = f * m + key * v[size_t(c)];
          }
        }
        const double size = std::abs(dot(sums, q));
        ++(size > 1 ? above : below);
        for (int64_t c = 0; c < g.w; ++c) {
          const Vector row(memory.begin() + c * x.n, memory.begin() + (c + 1) * x.n);
          out[size_t((t * g.h + head) * 2 * g.w + r * g.w + c)] =
              sigmoid(o[size_t(r * g.w + c)]) * dot(row, q) / std::max(size, 1.0);
        }
      }
    }
  EXPECT_GT(above, 5);
  EXPECT_GT(below, 5);
  g.expect_heads(out);
}

TEST(MatrixMixers, LedgerOfOptions) {
  const MixerShape s{24, 2};
  for (auto& [name, options] : std::vector<std::pair<const char*, MixerOptions>>{
           {"mamba2", {{"state", "10"}, {"conv", "2"}}},
           {"mamba2", {{"state", "10"}, {"variant", "hydra"}}},
           {"retention", {{"key", "5"}}},
           {"mlstm", {{"key", "7"}}},
           {"linear_attention", {{"key", "5"}, {"gate", "decay"}}},
           {"linear_attention", {{"feature", "none"}}}}) {
    const MixerLedger ledger = find_mixer(name).ledger(s, 70, options);
    auto mixer = make_mixer(name, s, options);
    EXPECT_EQ(mixer->parameter_count(), ledger.params) << name;
    EXPECT_EQ(plan_of(*mixer, {1, 70, 24}).total().macs, ledger.macs) << name;
    EXPECT_EQ(ledger.sequential_depth, 2) << name;
  }
}

}  // namespace
}  // namespace occam
