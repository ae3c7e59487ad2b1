// pool, token_mlp, dwconv and biwkv against their formulas, worked out number by number in double.
#include <functional>

#include "tests/nn/golden.h"

namespace occam {
namespace {

const MixerShape kShape{12, 3, 2, 3, 2};  // 12 channels, 3 heads, 2 x 3 patches after two other tokens
constexpr int64_t kC = 12, kW = 4, kT = 8;

using Tokens = std::vector<Vector>;  // [t][c]

/// The tap against fn(golden, pre's output) -> [t][h k].
void expect_heads(const char* name, const MixerOptions& options,
                  const std::function<Tokens(const Golden&, const Tokens&)>& fn) {
  Golden g(name, kShape, kT, options);
  Vector v;
  for (const Vector& token : fn(g, g.pre())) v.insert(v.end(), token.begin(), token.end());
  g.expect_heads(v);
}

TEST(SimpleMixers, Pool) {
  expect_heads("pool", {}, [](const Golden&, const Tokens& u) {
    Tokens v(kT, Vector(2 * kC));
    for (size_t t = 0; t < kT; ++t)
      for (size_t c = 0; c < kC; ++c) {
        const size_t h = c / kW, i = c % kW;
        v[t][h * 2 * kW + i] = u[t][c];
        for (size_t s = 0; s < kT; ++s) v[t][h * 2 * kW + kW + i] += u[s][c] / kT;
      }
    return v;
  });
}

TEST(SimpleMixers, TokenMlp) {
  constexpr int64_t n = 5;
  expect_heads("token_mlp", {{"hidden", "5"}}, [](const Golden& g, const Tokens& u) {
    Tokens v(kT, Vector(kC));
    for (int64_t c = 0; c < kC; ++c) {
      std::vector<double> hidden(n);
      for (int64_t j = 0; j < n; ++j) {
        double z = g.at("tokens.fc1.bias", j);
        for (int64_t t = 0; t < kT; ++t) z += g.at("tokens.fc1.weight", j * kT + t) * u[size_t(t)][size_t(c)];
        hidden[size_t(j)] = 0.5 * z * (1 + std::erf(z / std::sqrt(2.0)));
      }
      for (int64_t t = 0; t < kT; ++t) {
        v[size_t(t)][size_t(c)] = g.at("tokens.fc2.bias", t);
        for (int64_t j = 0; j < n; ++j)
          v[size_t(t)][size_t(c)] += g.at("tokens.fc2.weight", t * n + j) * hidden[size_t(j)];
      }
    }
    return v;
  });
}

TEST(SimpleMixers, Dwconv) {
  expect_heads("dwconv", {}, [](const Golden& g, const Tokens& u) {
    const int64_t prefix = kShape.prefix, gh = kShape.grid_h, gw = kShape.grid_w;
    Tokens v(kT, Vector(kC));
    for (int64_t c = 0; c < kC; ++c) {
      double mean = 0;
      for (int64_t p = prefix; p < kT; ++p) mean += u[size_t(p)][size_t(c)] / double(gh * gw);
      for (int64_t p = 0; p < kT; ++p) {
        double& y = v[size_t(p)][size_t(c)];
        y = g.at("conv.bias", c);
        if (p < prefix) {
          y += g.at("conv.prefix_weight", c) * u[size_t(p)][size_t(c)] +
               g.at("conv.prefix_weight", kC + c) * mean;
          continue;
        }
        const int64_t row = (p - prefix) / gw, column = (p - prefix) % gw;
        for (int64_t q = prefix; q < kT; ++q) {
          const int64_t i = (q - prefix) / gw - row + 1, j = (q - prefix) % gw - column + 1;
          if (i >= 0 && i < 3 && j >= 0 && j < 3)
            y += g.at("conv.weight", (i * 3 + j) * kC + c) * u[size_t(q)][size_t(c)];
        }
      }
    }
    return v;
  });
}

TEST(SimpleMixers, BiWkv) {
  expect_heads("biwkv", {}, [](const Golden& g, const Tokens& u) {
    // part 0 key, 1 value, 2 receptance of channel c at token t.
    auto kvr = [&](int64_t part, int64_t t, int64_t c) {
      const int64_t h = c / kW, o = part * kW + c % kW;
      double sum = 0;
      for (int64_t i = 0; i < kW; ++i)
        sum += g.at("wkv.kvr.weight", (h * 3 * kW + o) * kW + i) * u[size_t(t)][size_t(h * kW + i)];
      return sum;
    };
    Tokens v(kT, Vector(kC));
    for (int64_t c = 0; c < kC; ++c)
      for (int64_t t = 0; t < kT; ++t) {
        double num = 0, den = 0;
        for (int64_t s = 0; s < kT; ++s) {
          const double place =
              s == t ? g.at("wkv.bonus", c) : -g.at("wkv.decay", c) / kT * double(std::abs(s - t) - 1);
          num += std::exp(place + kvr(0, s, c)) * kvr(1, s, c), den += std::exp(place + kvr(0, s, c));
        }
        v[size_t(t)][size_t(c)] = num / den / (1 + std::exp(-kvr(2, t, c)));
      }
    return v;
  });
}

}  // namespace
}  // namespace occam
