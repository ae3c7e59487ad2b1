#include "ops/grid_lines/op.h"

#include "ops/concat/op.h"
#include "ops/grouped_linear/op.h"
#include "ops/reduce/op.h"
#include "ops/slice/op.h"
#include "ops/spec.h"
#include "ops/view/op.h"

namespace {
using namespace occam::spec;
using occam::Along;
using occam::PatchGrid;
using occam::Tensor;

/// Tokens of every line: [set][line][step].
std::vector<std::vector<std::vector<int64_t>>> sets_of(const PatchGrid& g, Along along) {
  std::vector<std::vector<std::vector<int64_t>>> sets;
  for (bool by_column : {false, true}) {
    if (along == (by_column ? Along::rows : Along::columns)) continue;
    auto& lines = sets.emplace_back(size_t(by_column ? g.columns : g.rows));
    for (auto& line : lines)
      for (int64_t i = 0; i < g.prefix; ++i) line.push_back(i);
    for (int64_t r = 0; r < g.rows; ++r)
      for (int64_t c = 0; c < g.columns; ++c)
        lines[size_t(by_column ? c : r)].push_back(g.prefix + r * g.columns + c);
  }
  return sets;
}

Arrays lines(const Array& x, const PatchGrid& g, Along along) {
  const auto sets = sets_of(g, along);
  const auto n = int64_t(sets[0].size()), l = int64_t(sets[0][0].size()), c = x.size(2);
  Array y({x.size(0) * n, l, int64_t(sets.size()), c});
  for (int64_t at = 0; at < y.size(0); ++at)
    for (int64_t step = 0; step < l; ++step)
      for (size_t set = 0; set < sets.size(); ++set)
        for (int64_t i = 0; i < c; ++i)
          y(at, step, set, i) = x(at / n, sets[set][size_t(at % n)][size_t(step)], i);
  return {y};
}

Arrays tokens(const Array& y, const PatchGrid& g, Along along) {
  const auto sets = sets_of(g, along);
  const auto n = int64_t(sets[0].size());
  Array x({y.size(0) / n, g.tokens(), y.size(3), y.size(2), y.size(4)});
  for (int64_t at = 0; at < y.size(0); ++at)
    for (int64_t step = 0; step < y.size(1); ++step)
      for (int64_t set = 0; set < y.size(2); ++set)
        for (int64_t h = 0; h < y.size(3); ++h)
          for (int64_t i = 0; i < y.size(4); ++i)
            x(at / n, sets[size_t(set)][size_t(at % n)][size_t(step)], h, set, i) +=
                y(at, step, set, h, i) / (step < g.prefix ? double(n) : 1.0);
  return {x};
}

Arrays project(const Arrays& in, const PatchGrid& g, Along along) {
  const Array x = tokens(in[0], g, along)[0];  // [b,t,h,s,q]
  Array y({x.size(0), x.size(1), x.size(2), in[1].size(1)});
  for (int64_t b = 0; b < y.size(0); ++b)
    for (int64_t t = 0; t < y.size(1); ++t)
      for (int64_t h = 0; h < y.size(2); ++h)
        for (int64_t o = 0; o < y.size(3); ++o) {
          double& sum = y(b, t, h, o);
          if (!in[2].absent()) sum = in[2](h, o);
          for (int64_t s = 0; s < x.size(3); ++s)
            for (int64_t i = 0; i < x.size(4); ++i) sum += x(b, t, h, s, i) * in[1](h, o, s * x.size(4) + i);
        }
  return {y};
}

Tensor lines_by_slices(const Tensor& x, const PatchGrid& g, Along along) {
  std::vector<Tensor> parts;
  for (const auto& set : sets_of(g, along)) {
    std::vector<Tensor> lines;
    for (const auto& line : set) {
      std::vector<Tensor> steps;
      for (int64_t token : line) steps.push_back(occam::slice(x, 1, token, 1));
      lines.push_back(
          occam::reshape(occam::concat(steps, 1), {x.size(0), 1, int64_t(line.size()), 1, x.size(2)}));
    }
    parts.push_back(occam::concat(lines, 1));
  }
  Tensor all = occam::concat(parts, 3);
  return occam::reshape(all, {x.size(0) * all.size(1), all.size(2), all.size(3), all.size(4)});
}

Tensor tokens_by_slices(const Tensor& y, const PatchGrid& g, Along along) {
  const auto sets = sets_of(g, along);
  const auto n = int64_t(sets[0].size()), l = y.size(1), p = g.prefix, b = y.size(0) / n;
  std::vector<Tensor> parts;
  for (size_t set = 0; set < sets.size(); ++set) {
    const bool by_column = along == Along::columns || set == 1;
    Tensor of = occam::reshape(occam::slice(y, 2, int64_t(set), 1), {b, n, l, y.size(3), y.size(4)});
    Tensor patches = occam::slice(of, 2, p, l - p);
    if (by_column) patches = occam::transpose(patches, 1, 2);
    std::vector<Tensor> all;
    if (p > 0) all.push_back(occam::mean(occam::slice(of, 2, 0, p), {1}));
    all.push_back(occam::reshape(patches, {b, g.rows * g.columns, y.size(3), y.size(4)}));
    Tensor t = occam::concat(all, 1);
    parts.push_back(occam::reshape(t, {b, g.tokens(), y.size(3), 1, y.size(4)}));
  }
  return occam::concat(parts, 3);
}
}  // namespace

OP_SPEC(grid_lines) {
  auto add = [&](const std::string& name, int64_t b, PatchGrid g, Along along, int64_t h, int64_t q,
                 bool small) {
    const int64_t n = along == Along::columns ? g.columns : g.rows,
                  l = g.tokens() > 0 ? (g.tokens() - g.prefix) / n : 0, sets = along == Along::both ? 2 : 1;
    // Two lines meet in a patch's gradient, and all of them in a prefix token.
    Sample& to = spec.sample(
                         name + "-lines", {randn({b, g.tokens(), h * q})},
                         [=](const std::vector<Tensor>& in) {
                           return std::vector{occam::grid_lines(in[0], g, along)};
                         },
                         [=](const Arrays& in) { return lines(in[0], g, along); })
                     .sum_length(double(2 * n))
                     .half_roundings(1.01)
                     .same_as([=](const std::vector<Tensor>& in) {
                       return std::vector{lines_by_slices(in[0], g, along)};
                     });
    if (small) to.small();
    if (b == 0) to.composite = nullptr;
    Sample& from = spec.sample(
                           name + "-tokens", {randn({b * n, g.prefix + l, sets, h, q})},
                           [=](const std::vector<Tensor>& in) {
                             return std::vector{occam::grid_tokens(in[0], g, along)};
                           },
                           [=](const Arrays& in) { return tokens(in[0], g, along); })
                       .sum_length(double(n))
                       .half_roundings(1.01)
                       .same_as([=](const std::vector<Tensor>& in) {
                         return std::vector{tokens_by_slices(in[0], g, along)};
                       });
    if (small) from.small();
    if (b == 0) from.composite = nullptr;
  };
  add("2x1+3x3-both-2x3", 2, {1, 3, 3}, Along::both, 2, 3, true);
  add("1x2+2x3-rows-1x2", 1, {2, 2, 3}, Along::rows, 1, 2, true);
  add("2x0+3x1-columns-3x1", 2, {0, 3, 1}, Along::columns, 3, 1, true);
  add("1x1+1x1-both-1x1", 1, {1, 1, 1}, Along::both, 1, 1, true);
  // Packs, several rounds of a block's threads, and a row that is no multiple of a pack.
  add("2x1+5x5-both-6x64", 2, {1, 5, 5}, Along::both, 6, 64, false);
  add("1x1+14x14-both-2x8", 1, {1, 14, 14}, Along::both, 2, 8, false);
  add("1x2+3x4-columns-3x300", 1, {2, 3, 4}, Along::columns, 3, 300, false);
  add("none", 0, {1, 2, 2}, Along::both, 2, 3, false);
  // On tensor cores with 128 states: tiles of 16 tokens that span images, several prefix tokens in
  // one, several lines a lane, the last tile cut short.
  auto with_product = [&](const char* name, int64_t b, PatchGrid g, Along along, int64_t h, int64_t q,
                          int64_t o, bool bias) -> Sample& {
    const int64_t n = along == Along::columns ? g.columns : g.rows, l = (g.tokens() - g.prefix) / n,
                  sets = along == Along::both ? 2 : 1;
    return spec
        .sample(
            name,
            {randn({b * n, g.prefix + l, sets, h, q}), randn({h, o, sets * q}),
             bias ? randn({h, o}) : absent()},
            [=](const std::vector<Tensor>& in) {
              return std::vector{occam::grid_project(in[0], g, along, in[1], in[2])};
            },
            [=](const Arrays& in) { return project(in, g, along); })
        .sum_length(double(sets * q + n))
        .same_as([=](const std::vector<Tensor>& in) {
          Tensor t = occam::grid_tokens(in[0], g, along);
          return std::vector{
              occam::grouped_linear(occam::reshape(t, {t.size(0), t.size(1), h, sets * q}), in[1], in[2])};
        });
  };
  with_product("2x1+2x2-project-2x3-5", 2, {1, 2, 2}, Along::both, 2, 3, 5, true).small();
  with_product("1x0+3x2-project-columns-1x2-1", 1, {0, 3, 2}, Along::columns, 1, 2, 1, false).small();
  with_product("3x1+3x3-project-2x128-64", 3, {1, 3, 3}, Along::both, 2, 128, 64, true);
  with_product("1x2+14x14-project-1x128-128", 1, {2, 14, 14}, Along::both, 1, 128, 128, false);
  spec.bad(
      "tokens",
      [] {
        occam::grid_lines(occam::zeros({1, 6, 2}), {1, 2, 2}, Along::both);
      },
      "grid_lines: 6 tokens, but a grid of 2 x 2 patches after 1 tokens");
  spec.bad(
      "square",
      [] {
        occam::grid_lines(occam::zeros({1, 7, 2}), {1, 2, 3}, Along::both);
      },
      "rows and columns at once need a square grid, not 2 x 3");
  spec.bad(
      "lines",
      [] {
        occam::grid_tokens(occam::zeros({3, 3, 2, 1, 2}), {1, 2, 2}, Along::both);
      },
      "grid_tokens: y is [3,3,2,1,2]");
}
