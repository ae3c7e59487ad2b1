// pool, token_mlp, dwconv and biwkv against their formulas, worked out number by number in double.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>

#include "core/grad_mode.h"
#include "nn/mixers/mixer.h"
#include "tests/nn/rule.h"

namespace occam {
namespace {

const MixerShape kShape{12, 3, 2, 3, 2};  // 12 channels, 3 heads, 2 x 3 patches after two other tokens
constexpr int64_t kC = 12, kW = 4, kT = 8;

using Tokens = std::vector<std::vector<double>>;  // [t][c]

class Reference {
 public:
  explicit Reference(TokenMixer& mixer) {
    for (auto& [name, p] : mixer.named_parameters()) values_[name] = p->master().to_vector<double>();
  }
  double at(const std::string& name, int64_t i) const { return values_.at(name).at(size_t(i)); }

  Tokens pre(const Tokens& x) const {
    Tokens y(x.size(), std::vector<double>(kC));
    for (size_t t = 0; t < x.size(); ++t)
      for (int64_t o = 0; o < kC; ++o) {
        y[t][size_t(o)] = at("pre.bias", o);
        for (int64_t i = 0; i < kC; ++i) y[t][size_t(o)] += at("pre.weight", o * kC + i) * x[t][size_t(i)];
      }
    return y;
  }
  /// v: [t][h * width].
  Tokens head_proj(const Tokens& v, int64_t width) const {
    Tokens y(v.size(), std::vector<double>(kC));
    for (size_t t = 0; t < v.size(); ++t)
      for (int64_t c = 0; c < kC; ++c) {
        y[t][size_t(c)] = at("head_proj.bias", c);
        for (int64_t i = 0; i < width; ++i)
          y[t][size_t(c)] += at("head_proj.weight", c * width + i) * v[t][size_t(c / kW * width + i)];
      }
    return y;
  }

 private:
  std::map<std::string, std::vector<double>> values_;
};

/// heads(x) against fn(reference, pre(x)).
void expect_heads(const std::string& name, const MixerOptions& options,
                  const std::function<Tokens(const Reference&, const Tokens&)>& fn) {
  auto mixer = make_mixer(name, kShape, options);
  rule::fill(*mixer, "simple/" + name);
  const Tensor x = rule::tensor("simple/x", {2, kT, kC}, 0, 1.5);
  NoGrad no_grad;
  const std::vector<double> got = mixer->heads(x).to_vector<double>(), in = x.to_vector<double>();
  const Reference reference(*mixer);
  for (int64_t b = 0; b < 2; ++b) {
    Tokens image(kT, std::vector<double>(kC));
    for (int64_t i = 0; i < kT * kC; ++i) image[size_t(i / kC)][size_t(i % kC)] = in[size_t(b * kT * kC + i)];
    const Tokens expected = fn(reference, reference.pre(image));
    // f32: three layers of sums of at most 12 products of size about 1.
    for (int64_t i = 0; i < kT * kC; ++i)
      EXPECT_NEAR(got[size_t(b * kT * kC + i)], expected[size_t(i / kC)][size_t(i % kC)], 1e-5)
          << name << " image " << b << " token " << i / kC << " channel " << i % kC;
  }
}

TEST(SimpleMixers, Pool) {
  expect_heads("pool", {}, [](const Reference& r, const Tokens& u) {
    Tokens v(kT, std::vector<double>(2 * kC));
    for (size_t t = 0; t < kT; ++t)
      for (size_t c = 0; c < kC; ++c) {
        const size_t h = c / kW, i = c % kW;
        v[t][h * 2 * kW + i] = u[t][c];
        for (size_t s = 0; s < kT; ++s) v[t][h * 2 * kW + kW + i] += u[s][c] / kT;
      }
    return r.head_proj(v, 2 * kW);
  });
}

TEST(SimpleMixers, TokenMlp) {
  constexpr int64_t n = 5;
  expect_heads("token_mlp", {{"hidden", "5"}}, [](const Reference& r, const Tokens& u) {
    Tokens v(kT, std::vector<double>(kC));
    for (int64_t c = 0; c < kC; ++c) {
      std::vector<double> hidden(n);
      for (int64_t j = 0; j < n; ++j) {
        double z = r.at("tokens.fc1.bias", j);
        for (int64_t t = 0; t < kT; ++t) z += r.at("tokens.fc1.weight", j * kT + t) * u[size_t(t)][size_t(c)];
        hidden[size_t(j)] = 0.5 * z * (1 + std::erf(z / std::sqrt(2.0)));
      }
      for (int64_t t = 0; t < kT; ++t) {
        v[size_t(t)][size_t(c)] = r.at("tokens.fc2.bias", t);
        for (int64_t j = 0; j < n; ++j)
          v[size_t(t)][size_t(c)] += r.at("tokens.fc2.weight", t * n + j) * hidden[size_t(j)];
      }
    }
    return r.head_proj(v, kW);
  });
}

TEST(SimpleMixers, Dwconv) {
  expect_heads("dwconv", {}, [](const Reference& r, const Tokens& u) {
    const int64_t prefix = kShape.prefix, gh = kShape.grid_h, gw = kShape.grid_w;
    Tokens v(kT, std::vector<double>(kC));
    for (int64_t c = 0; c < kC; ++c) {
      double mean = 0;
      for (int64_t p = prefix; p < kT; ++p) mean += u[size_t(p)][size_t(c)] / double(gh * gw);
      for (int64_t p = 0; p < kT; ++p) {
        double& y = v[size_t(p)][size_t(c)];
        y = r.at("conv.bias", c);
        if (p < prefix) {
          y += r.at("conv.prefix_weight", c) * u[size_t(p)][size_t(c)] +
               r.at("conv.prefix_weight", kC + c) * mean;
          continue;
        }
        const int64_t row = (p - prefix) / gw, column = (p - prefix) % gw;
        for (int64_t q = prefix; q < kT; ++q) {
          const int64_t i = (q - prefix) / gw - row + 1, j = (q - prefix) % gw - column + 1;
          if (i >= 0 && i < 3 && j >= 0 && j < 3)
            y += r.at("conv.weight", (i * 3 + j) * kC + c) * u[size_t(q)][size_t(c)];
        }
      }
    }
    return r.head_proj(v, kW);
  });
}

TEST(SimpleMixers, BiWkv) {
  expect_heads("biwkv", {}, [](const Reference& r, const Tokens& u) {
    // part 0 key, 1 value, 2 receptance of channel c at token t.
    auto kvr = [&](int64_t part, int64_t t, int64_t c) {
      const int64_t h = c / kW, o = part * kW + c % kW;
      double sum = 0;
      for (int64_t i = 0; i < kW; ++i)
        sum += r.at("wkv.kvr.weight", (h * 3 * kW + o) * kW + i) * u[size_t(t)][size_t(h * kW + i)];
      return sum;
    };
    Tokens v(kT, std::vector<double>(kC));
    for (int64_t c = 0; c < kC; ++c)
      for (int64_t t = 0; t < kT; ++t) {
        double num = 0, den = 0;
        for (int64_t s = 0; s < kT; ++s) {
          const double place =
              s == t ? r.at("wkv.bonus", c) : -r.at("wkv.decay", c) / kT * double(std::abs(s - t) - 1);
          num += std::exp(place + kvr(0, s, c)) * kvr(1, s, c), den += std::exp(place + kvr(0, s, c));
        }
        v[size_t(t)][size_t(c)] = num / den / (1 + std::exp(-kvr(2, t, c)));
      }
    return r.head_proj(v, kW);
  });
}

}  // namespace
}  // namespace occam
