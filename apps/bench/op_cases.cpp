// What every op is timed on.
#include <fmt/format.h>

#include "apps/bench/op.h"
#include "autograd/node.h"
#include "core/check.h"
#include "core/config.h"
#include "core/rng.h"
#include "ops/activation/op.h"
#include "ops/adamw/op.h"
#include "ops/attention/op.h"
#include "ops/attention_stats/op.h"
#include "ops/cast/op.h"
#include "ops/concat/op.h"
#include "ops/cross_entropy/op.h"
#include "ops/distance/op.h"
#include "ops/dropout/op.h"
#include "ops/elementwise/op.h"
#include "ops/fused_linear/op.h"
#include "ops/gather/op.h"
#include "ops/grouped_linear/op.h"
#include "ops/layer_norm/op.h"
#include "ops/linear/op.h"
#include "ops/log_softmax/op.h"
#include "ops/lstm/op.h"
#include "ops/matmul/op.h"
#include "ops/mlp/op.h"
#include "ops/op.h"
#include "ops/patch_embed/op.h"
#include "ops/reduce/op.h"
#include "ops/scatter/op.h"
#include "ops/softmax/op.h"
#include "ops/token_embed/op.h"

namespace occam {
namespace {

using Tensors = std::vector<Tensor>;
using Call = std::function<Tensor(const Tensors&)>;

class Cases {
 public:
  Cases(const OpSizes& sizes, Device device, DType dtype) : s_(sizes), device_(device), dtype_(dtype) {
    elementwise();
    layers();
    attention_and_rnns();
    losses();
    indexing();
    updates();
    for (OpCase& c : scan_cases(sizes, device, dtype)) all.push_back(std::move(c));
  }
  std::vector<OpCase> all;

 private:
  /// An input that wants a gradient.
  Tensor values(const Shape& shape, bool grad = true, double low = 0, double high = 0) const {
    Tensor t = random_values(shape, {dtype_, device_}, low, high);
    if (grad) set_requires_grad(t, true);
    return t;
  }
  Tensor indices(int64_t count, int64_t below) const {
    Rng rng(0, "index");
    std::vector<int64_t> v(static_cast<size_t>(count));
    for (int64_t& i : v) i = rng.below(below);
    return raw::to(from_vector(v), device_);
  }

  void add(const std::string& op, const std::string& shape, std::function<Tensors()> make, Call call) {
    all.push_back({op, shape, std::move(make), std::move(call)});
  }

  void elementwise() {
    const Shape hidden{s_.batch, s_.tokens, 4 * s_.dim}, x{s_.batch, s_.tokens, s_.dim};
    using Function = Tensor (*)(const Tensor&);
    for (auto [name, f] : {std::pair<const char*, Function>{"gelu", gelu},
                           {"gelu_tanh", gelu_tanh},
                           {"silu", silu},
                           {"sigmoid", sigmoid},
                           {"tanh", tanh},
                           {"relu", relu},
                           {"exp", exp},
                           {"log", log}}) {
      const bool positive = std::string(name) == "log";
      add(
          name, hidden.str(),
          [this, hidden, positive] {
            return Tensors{positive ? values(hidden, true, 0.1, 2) : values(hidden)};
          },
          [f = f](const Tensors& in) { return f(in[0]); });
    }
    using Binary = Tensor (*)(const Tensor&, const Tensor&);
    for (auto [name, f] :
         {std::pair<const char*, Binary>{"add", occam::add}, {"sub", sub}, {"mul", mul}, {"div", div}})
      add(
          name, x.str(),
          [this, x] {
            return Tensors{values(x), values(x, true, 0.5, 2)};
          },
          [f = f](const Tensors& in) { return f(in[0], in[1]); });
    add(
        "add", x.str() + " and one image's, as a position embedding",
        [this, x] {
          return Tensors{values(x), values(x.with(0, 1))};
        },
        [](const Tensors& in) { return in[0] + in[1]; });
    add(
        "scale_shift", x.str(), [this, x] { return Tensors{values(x)}; },
        [](const Tensors& in) { return mul_scalar(in[0], 0.5); });
    add(
        "dropout", x.str() + " p 0.1", [this, x] { return Tensors{values(x)}; },
        [](const Tensors& in) { return dropout(in[0], 0.1, true); });
    add(
        "cast", x.str() + (dtype_ == DType::bf16 ? " bf16 -> f32" : " f32 -> bf16"),
        [this, x] { return Tensors{values(x)}; },
        [to = dtype_ == DType::bf16 ? DType::f32 : DType::bf16](const Tensors& in) {
          return cast(in[0], to);
        });
  }

  void layers() {
    const int64_t d = s_.dim;
    const Shape x{s_.batch, s_.tokens, d};
    for (auto [in, out, activation] : {std::tuple{d, 3 * d, LinearActivation::none},
                                       {d, d, LinearActivation::none},
                                       {d, 4 * d, LinearActivation::gelu},
                                       {4 * d, d, LinearActivation::none}})
      add(
          "linear",
          fmt::format("[{},{},{}] -> {}{}", s_.batch, s_.tokens, in, out,
                      activation == LinearActivation::gelu ? " gelu" : ""),
          [this, in = in, out = out] {
            return Tensors{values({s_.batch, s_.tokens, in}), values({out, in}), values({out})};
          },
          [a = activation](const Tensors& t) { return linear(t[0], t[1], t[2], a); });
    for (auto [in, out, inside] : {std::tuple{d, 3 * d, true}, {4 * d, d, false}})
      add(
          "fused_linear",
          fmt::format("[1,{},{}] -> {} {}", s_.tokens, in, out,
                      inside ? "normalised" : "added to a residual"),
          [this, in = in, out = out, inside = inside] {
            return Tensors{values({1, s_.tokens, in}, false),
                           values({out, in}, false),
                           values({out}, false),
                           inside ? values({in}, false) : Tensor(),
                           inside ? values({in}, false) : Tensor(),
                           inside ? Tensor() : values({1, s_.tokens, out}, false)};
          },
          [](const Tensors& t) {
            return fused_linear(t[0], t[1], t[2], {.norm_weight = t[3], .norm_bias = t[4], .residual = t[5]});
          });
    add(
        "mlp", fmt::format("{} by {}", x.str(), 4 * d),
        [this, x, d] {
          return Tensors{values(x), values({4 * d, d}), values({4 * d}), values({d, 4 * d}), values({d})};
        },
        [](const Tensors& t) { return mlp(t[0], t[1], t[2], t[3], t[4]); });
    add(
        "token_embed", x.str(),
        [this, d] {
          return Tensors{values({s_.batch, s_.tokens - 1, d}), values({1, d}), values({s_.tokens, d})};
        },
        [](const Tensors& t) { return token_embed(t[0], t[1], t[2]); });
    add(
        "layer_norm", x.str(),
        [this, x, d] {
          return Tensors{values(x), values({d}), values({d})};
        },
        [](const Tensors& t) { return layer_norm(t[0], t[1], t[2]); });
    add(
        "add_layer_norm", x.str(),
        [this, x, d] {
          return Tensors{values(x), values(x), values({d}), values({d})};
        },
        [](const Tensors& t) { return add_layer_norm(t[0], t[1], t[2], t[3]).second; });
    add(
        "patchify", fmt::format("[{0},3,{1},{1}] by {2}, with its product", s_.batch, s_.image, s_.patch),
        [this, d] {
          return Tensors{values({s_.batch, 3, s_.image, s_.image}), values({d, 3, s_.patch, s_.patch}),
                         values({d})};
        },
        [](const Tensors& t) { return patch_embed(t[0], t[1], t[2]); });
    const int64_t w = d / s_.heads;
    add(
        "grouped_linear", fmt::format("[{},{},{},{}] -> {}", s_.batch, s_.tokens, s_.heads, 2 * w, w),
        [this, w] {
          return Tensors{values({s_.batch, s_.tokens, s_.heads, 2 * w}), values({s_.heads, w, 2 * w}),
                         values({s_.heads, w})};
        },
        [](const Tensors& t) { return grouped_linear(t[0], t[1], t[2]); });
    add(
        "sum", x.str() + " over tokens", [this, x] { return Tensors{values(x)}; },
        [](const Tensors& t) { return sum(t[0], {1}); });
    add(
        "sum", x.str() + " over images", [this, x] { return Tensors{values(x)}; },
        [](const Tensors& t) { return sum(t[0], {0}); });
    add(
        "max", x.str() + " over channels", [this, x] { return Tensors{values(x)}; },
        [](const Tensors& t) { return max(t[0], -1); });
    add(
        "concat", x.str() + " and a token",
        [this, x] {
          return Tensors{values(x.with(1, 1)), values(x)};
        },
        [](const Tensors& t) {
          return concat({t[0], t[1]}, 1);
        });
  }

  void attention_and_rnns() {
    const int64_t h = s_.heads, w = s_.dim / h, t = s_.tokens;
    const Shape qkv{s_.batch, t, 3, h, w}, map{s_.batch, h, t, t};
    add(
        "attention", qkv.str(), [this, qkv] { return Tensors{values(qkv)}; },
        [](const Tensors& in) { return attention(in[0]); });
    AttentionStatsOptions options;
    options.grid_h = options.grid_w = s_.image / s_.patch;
    for (bool order : {false, true}) {
      options.order_metrics = order;
      add(
          "attention_stats", qkv.str() + (order ? "" : " without order metrics"),
          [this, qkv] { return Tensors{values(qkv, false)}; },
          [options](const Tensors& in) { return attention_stats(in[0], options); });
    }
    add(
        "attention_map_moments", qkv.str(), [this, qkv] { return Tensors{values(qkv, false)}; },
        [](const Tensors& in) { return attention_map_moments(in[0]); });
    add(
        "row_stats", map.str(), [this, map] { return Tensors{values(map, false, 0, 1)}; },
        [options](const Tensors& in) { return row_stats(in[0], options); });
    add(
        "softmax", map.str(), [this, map] { return Tensors{values(map)}; },
        [](const Tensors& in) { return softmax(in[0]); });
    add(
        "log_softmax", map.str(), [this, map] { return Tensors{values(map)}; },
        [](const Tensors& in) { return log_softmax(in[0]); });
    add(
        "matmul", fmt::format("q k^T of [{},{},{},{}]", s_.batch, h, t, w),
        [this, h, t, w] {
          return Tensors{values({s_.batch, h, t, w}), values({s_.batch, h, t, w})};
        },
        [](const Tensors& in) { return matmul(in[0], in[1], false, true); });
    const Sequences mixed = mixed_sequences(s_, device_);
    auto add_rnn = [&](const char* name, decltype(lstm)* op, int64_t gates) {
      for (const Sequences& rows : {Sequences{}, mixed}) {
        const Shape padded{s_.batch, t, h, w}, x = rows ? ragged_shape(padded, s_, rows) : padded;
        add(
            name, fmt::format("{}, states of {}", rows ? what_of(rows) : padded.str(), w),
            [this, x, h, w, g = gates * w] {
              return Tensors{values(x), values({2, h, g, w}, true, -0.1, 0.1),
                             values({2, h, g, w}, true, -0.1, 0.1), values({2, h, g}), values({2, h, g})};
            },
            [op, rows](const Tensors& in) { return op(in[0], in[1], in[2], in[3], in[4], rows); });
      }
    };
    add_rnn("lstm", lstm, 4);
    add_rnn("gru", gru, 3);
  }

  void losses() {
    const Shape logits{s_.batch, s_.classes}, x{s_.batch, s_.tokens, s_.dim};
    add(
        "cross_entropy", logits.str(),
        [this, logits] {
          return Tensors{values(logits), indices(s_.batch, s_.classes)};
        },
        [](const Tensors& t) { return cross_entropy(t[0], t[1], 0.1); });
    add(
        "soft_cross_entropy", logits.str(),
        [this, logits] {
          return Tensors{values(logits), raw::to(values(logits, false, 0, 1e-2), DType::f32)};
        },
        [](const Tensors& t) { return soft_cross_entropy(t[0], t[1]); });
    add(
        "kl_div", logits.str(),
        [this, logits] {
          return Tensors{values(logits), values(logits, false)};
        },
        [](const Tensors& t) { return kl_div(t[0], t[1], 3); });
    auto pair = [this, x] { return Tensors{values(x), values(x, false)}; };
    add("mse", x.str(), pair, [](const Tensors& t) { return mse(t[0], t[1]); });
    add("cosine_distance", x.str(), pair, [](const Tensors& t) { return cosine_distance(t[0], t[1]); });
  }

  void indexing() {
    const Shape x{s_.batch, s_.tokens, s_.dim};
    auto make = [this, x] { return Tensors{values(x), indices(s_.tokens, s_.tokens), values(x)}; };
    add("gather", x.str() + " by rows", make, [](const Tensors& t) { return index_select(t[0], 1, t[1]); });
    add("scatter_add", x.str() + " by rows", make,
        [](const Tensors& t) { return scatter_add(t[0], 1, t[1], t[2]); });
  }

  /// As the optimiser's ops that leave their inputs alone: a copy of each comes on top.
  void updates() {
    const Shape p{s_.parameters};
    auto make = [this, p] {
      Tensors in;
      for (int i = 0; i < 4; ++i) in.push_back(raw::to(values(p, false, 0, 1), DType::f32));
      return in;
    };
    add("adamw", p.str() + " and copies", make,
        [](const Tensors& t) { return update_ops::adamw(t, 1e-3, 0.05, 0, 10)[0]; });
    add("sgd", p.str() + " and copies", make,
        [](const Tensors& t) { return update_ops::sgd(std::span(t).first(3), 1e-3, 0.05, 0.9, 0)[0]; });
    add("ema", p.str() + " and copies", make,
        [](const Tensors& t) { return update_ops::ema(t[0], t[1], 0.999); });
  }

  OpSizes s_;
  Device device_;
  DType dtype_;
};

std::vector<std::string> op_names() {
  std::vector<std::string> names;
  for (const OpEntry* entry : op_table()) names.emplace_back(entry->info.name);
  return names;
}

}  // namespace

std::vector<OpCase> op_cases(const std::string& op, const OpSizes& sizes, Device device, DType dtype) {
  const std::vector<std::string> names = op_names();
  OCCAM_CHECK(op == "all" || std::find(names.begin(), names.end(), op) != names.end(), ErrorKind::usage,
              "there is no op '{}'; {}", op, name_hint(op, names));
  // The cases' functions reach back into it.
  static std::vector<std::unique_ptr<Cases>> kept;
  kept.push_back(std::make_unique<Cases>(sizes, device, dtype));
  std::vector<OpCase> cases = kept.back()->all;
  if (op != "all") std::erase_if(cases, [&](const OpCase& c) { return c.op != op; });
  return cases;
}

std::vector<std::string> ops_without_case() {
  const std::vector<std::string> views{"reshape", "permute", "expand", "slice", "split", "clear_unused"};
  std::vector<std::string> missing;
  const Cases cases(OpSizes{}, kCPU, DType::f32);
  for (const std::string& name : op_names()) {
    const bool known =
        std::any_of(cases.all.begin(), cases.all.end(), [&](const OpCase& c) { return c.op == name; });
    if (!known && std::find(views.begin(), views.end(), name) == views.end()) missing.push_back(name);
  }
  return missing;
}

}  // namespace occam
