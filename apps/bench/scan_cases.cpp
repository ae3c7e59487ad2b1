// What the ops of token mixers other than attention are timed on.
#include <fmt/format.h>

#include <cmath>

#include "apps/bench/op.h"
#include "autograd/node.h"
#include "core/check.h"
#include "core/rng.h"
#include "ops/activation/op.h"
#include "ops/diagonal_scan/op.h"
#include "ops/dwconv/op.h"
#include "ops/grid_lines/op.h"
#include "ops/matrix_scan/op.h"
#include "ops/rms_norm/op.h"
#include "ops/s4d/op.h"
#include "ops/scan_gates/op.h"
#include "ops/selective_scan/op.h"
#include "ops/short_conv/op.h"
#include "ops/wkv/op.h"

namespace occam {
namespace {

using Tensors = std::vector<Tensor>;

/// An input of uniform numbers that wants a gradient.
struct In {
  Shape shape;
  double low = -1, high = 1;
  bool f32 = false;  // beside bf16 too
};

}  // namespace

Sequences mixed_sequences(const OpSizes& s, Device device) {
  Rng rng(0, "lengths");
  OCCAM_CHECK(s.batch <= INT32_MAX / s.tokens, ErrorKind::usage,
              "bench op: {} images of {} tokens are more rows than offsets of sequences count", s.batch,
              s.tokens);
  const int64_t shortest = (s.tokens + 4) / 5;
  std::vector<int32_t> offsets{0};
  for (int64_t i = 0; i < s.batch; ++i)
    offsets.push_back(int32_t(offsets.back() + shortest + rng.below(s.tokens - shortest + 1)));
  return {raw::to(from_vector(offsets), device), s.tokens};
}
std::string what_of(const Sequences& rows) {
  const Tensor offsets = raw::to(rows.offsets, kCPU);
  return fmt::format("{} sequences in {} rows", rows.count(), offsets.data<int32_t>()[rows.count()]);
}
Shape ragged_shape(const Shape& padded, const OpSizes& s, const Sequences& rows) {
  if (padded.rank() < 2 || padded[0] != s.batch || padded[1] != s.tokens) return padded;
  return padded.without(0).with(0, raw::to(rows.offsets, kCPU).data<int32_t>()[rows.count()]);
}

std::vector<OpCase> scan_cases(const OpSizes& s, Device device, DType dtype) {
  const int64_t b = s.batch, t = s.tokens, c = s.dim, h = s.heads, w = c / h, grid = s.image / s.patch;
  const double small = 1 / std::sqrt(double(w));
  std::vector<OpCase> all;
  const Sequences mixed = mixed_sequences(s, device);
  auto add_case = [&](const char* op, const std::string& what, std::vector<In> inputs,
                      std::function<Tensor(const Tensors&)> call) {
    auto make = [inputs = std::move(inputs), device, dtype] {
      Tensors made;
      for (const In& i : inputs) {
        made.push_back(random_values(i.shape, {i.f32 ? DType::f32 : dtype, device}, i.low, i.high));
        set_requires_grad(made.back(), true);
      }
      return made;
    };
    all.push_back({op, what, std::move(make), std::move(call)});
  };
  auto add = [&](const char* op, const std::string& what, std::vector<In> inputs,
                 std::function<Tensor(const Tensors&)> call) {
    add_case(op, fmt::format("[{},{},{}] {}", b, t, c, what), std::move(inputs), std::move(call));
  };
  /// Padded, then ragged.
  auto add_both = [&](const char* op, const std::string& what, std::vector<In> inputs,
                      std::function<Tensor(const Tensors&, const Sequences&)> call) {
    add(op, what, inputs, [call](const Tensors& in) { return call(in, {}); });
    for (In& i : inputs) i.shape = ragged_shape(i.shape, s, mixed);
    add_case(op, fmt::format("{} {}", what_of(mixed), what), std::move(inputs),
             [call, mixed](const Tensors& in) { return call(in, mixed); });
  };
  add_both("diagonal_scan", "both directions", {{{b, t, h, 2, w}, 0, 1}, {{b, t, h, 2, w}}},
           [](const Tensors& in, const Sequences& rows) { return diagonal_scan(in[0], in[1], rows); });
  for (GatedCell cell : {GatedCell::min_gru, GatedCell::min_lstm}) {
    const int64_t k = gates_of(cell);
    const std::string name = cell == GatedCell::min_gru ? "minGRU" : "minLSTM";
    const Shape weights{2, h, k * w, w}, bias{2, h, k * w};
    add_both("gated_scan", name, {{{b, t, h, 2, k * w}}},
             [cell](const Tensors& in, const Sequences& rows) { return gated_scan(in[0], cell, rows); });
    add_both("head_gated_scan", name, {{{b, t, h, w}}, {weights, -small, small}, {bias}},
             [cell](const Tensors& in, const Sequences& rows) {
               return head_gated_scan(in[0], in[1], in[2], cell, rows);
             });
    add_both("head_gated_scan_project", name,
             {{{b, t, h, w}}, {weights, -small, small}, {bias}, {{h, w, 2 * w}, -small, small}, {{h, w}}},
             [cell](const Tensors& in, const Sequences& rows) {
               return head_gated_scan_project(in[0], in[1], in[2], in[3], in[4], cell, rows);
             });
  }
  add_both("selective_scan", "16 states",
           {{{b, t, 2, c}},
            {{b, t, 2, c}, -4, 0},
            {{2, c, 16}, 0, 2.7},
            {{b, t, 2, 16}},
            {{b, t, 2, 16}},
            {{2, c}}},
           [h](const Tensors& in, const Sequences& rows) {
             return selective_scan(in[0], in[1], in[2], in[3], in[4], in[5], h, rows);
           });
  add_both(
      "s4d", "16 states",
      {{{b, t, c}}, {{2, c}, -6, -3}, {{2, c, 16}, -1, 0}, {{2, c, 16}, 0, 50}, {{2, c, 16, 2}}, {{2, c}}},
      [h](const Tensors& in, const Sequences& rows) {
        return s4d(in[0], in[1], in[2], in[3], in[4], in[5], h, rows);
      });
  add_both("matrix_scan", "as in mamba2, 128 states",
           {{{b, t, 2, 1, 128}},
            {{b, t, 2, 1, 128}, -0.1, 0.1},
            {{b, t, 2, h, w}},
            {{b, t, 2, h}, -0.5, 0, true},
            {{b, t, 2, h}, 0, 0.1, true},
            {{2, h}}},
           [](const Tensors& in, const Sequences& rows) {
             return matrix_scan(in[0], in[1], in[2], in[3], {.scale = in[4], .skip = in[5]}, rows);
           });
  add("matrix_scan", "as in mamba2, hydra",
      {{{b, t, 2, 1, 128}},
       {{b, t, 2, 1, 128}, -0.1, 0.1},
       {{b, t, 1, h, w}},
       {{b, t, 2, h}, -0.5, 0, true},
       {{b, t, 2, h}, 0, 0.1, true},
       {{b, t, h}}},
      [](const Tensors& in) {
        return matrix_scan(in[0], in[1], in[2], in[3], {.scale = in[4], .merge = true, .diagonal = in[5]});
      });
  add("matrix_scan", "as in mlstm",
      {{{b, t, 1, h, w}},
       {{b, t, 1, h, w}, -small, small},
       {{b, t, 1, h, w}},
       {{b, t, 2, h}, -0.5, 0, true},
       {{b, t, 2, h}, 0, 1, true},
       {{b, t, 2, h}, 0.5, 1, true}},
      [](const Tensors& in) {
        return matrix_scan(in[0], in[1], in[2], in[3], {.scale = in[4], .floor = in[5]});
      });
  add_both("matrix_scan", "as in retention",
           {{{b, t, 1, h, w}},
            {{b, t, 1, h, w}, -small, small},
            {{b, t, 1, h, w}},
            {{b, t, 2, h}, -0.03, 0, true}},
           [](const Tensors& in, const Sequences& rows) {
             return matrix_scan(in[0], in[1], in[2], in[3], {.merge = true}, rows);
           });
  add_both("short_conv", "4 taps, mamba2's 256 more channels",
           {{{b, t, 2, c + 256}}, {{2, c + 256, 4}}, {{2, c + 256}}},
           [](const Tensors& in, const Sequences& rows) { return short_conv(in[0], in[1], in[2], rows); });
  add_both("short_conv", "7 taps round the token, one direction",
           {{{b, t, 1, c + 256}}, {{1, c + 256, 7}}, {{1, c + 256}}},
           [](const Tensors& in, const Sequences& rows) { return short_conv(in[0], in[1], in[2], rows); });
  add("rms_norm", "gated, both directions", {{{b, t, h, 2, w}}, {{2, h, w}}, {{b, t, 2, h, w}}},
      [](const Tensors& in) { return rms_norm(in[0], in[1], in[2]); });
  add("rms_norm", "both directions, no gate", {{{b, t, h, 2, w}}, {{2, h, w}}},
      [](const Tensors& in) { return rms_norm(in[0], in[1]); });
  add("softplus_gates", "a gate a head", {{{b, t, 2, h}}, {{2, h}}, {{2, h}, 0, 2.7}},
      [](const Tensors& in) { return softplus_gates(in[0], in[1], in[2]).scale; });
  add("gate_maximum", "a gate a head", {{{b, t, 2, h}}, {{b, t, 2, h}}},
      [](const Tensors& in) { return gate_maximum(detach(in[0]), detach(in[1])); });
  add("exponential_gates", "a gate a head", {{{b, t, 2, h}}, {{b, t, 2, h}}, {{b, t, 2, h}, 0, 3}},
      [](const Tensors& in) { return exponential_gates(in[0], in[1], detach(in[2])).scale; });
  const PatchGrid patches{1, grid, grid};
  const int64_t line = 1 + grid;
  add("grid_lines", "rows and columns", {{{b, 1 + grid * grid, c}}},
      [patches](const Tensors& in) { return grid_lines(in[0], patches, Along::both); });
  add("grid_tokens", "rows and columns, both directions", {{{b * grid, line, 2, h, 2 * w}}},
      [patches](const Tensors& in) { return grid_tokens(in[0], patches, Along::both); });
  add("grid_project", "rows and columns, both directions",
      {{{b * grid, line, 2, h, 2 * w}}, {{h, w, 4 * w}, -small, small}, {{h, w}}},
      [patches](const Tensors& in) {
        return grid_project(detach(in[0]), patches, Along::both, detach(in[1]), detach(in[2]));
      });
  for (int64_t k : {3, 7})
    add("dwconv", fmt::format("{0} x {0}", k), {{{b, 1 + grid * grid, c}}, {{k, k, c}}, {{2, c}}, {{c}}},
        [grid](const Tensors& in) { return dwconv(in[0], in[1], in[2], in[3], grid, grid); });
  add_both("wkv", "decays of biwkv", {{{b, t, c}}, {{b, t, c}}, {{c}, -4, 4}, {{c}}},
           [](const Tensors& in, const Sequences& rows) { return wkv(in[0], in[1], in[2], in[3], rows); });
  add("elu_plus_one", "", {{{b, t, c}}}, [](const Tensors& in) { return elu_plus_one(in[0]); });
  return all;
}

}  // namespace occam
