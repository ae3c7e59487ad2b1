#include "nn/mixers/head_rnn.h"

#include "nn/init.h"
#include "nn/plan.h"
#include "ops/lstm/op.h"
#include "ops/ragged.h"
#include "ops/slice/op.h"

namespace occam {

HeadRnn::HeadRnn(Op* op, int64_t gates, int64_t heads, int64_t in, int64_t hidden)
    : op_(op),
      weight_ih_(param("weight_ih", {2, heads, gates * hidden, in}, init::fan_in_uniform(hidden))),
      weight_hh_(param("weight_hh", {2, heads, gates * hidden, hidden}, init::fan_in_uniform(hidden))),
      bias_ih_(param("bias_ih", {2, heads, gates * hidden}, init::fan_in_uniform(hidden))),
      bias_hh_(param("bias_hh", {2, heads, gates * hidden}, init::fan_in_uniform(hidden))) {}

Shape HeadRnn::plan(const Shape& x, Plan& plan) const {
  plan.add_macs(x[0] * x[1] * (weight_ih_.numel() + weight_hh_.numel()));
  return x.with(-1, 2 * weight_hh_.shape()[-1]);
}

Tensor HeadRnn::forward(const Tensor& x, const Sequences& rows) {
  return as_image(
      op_(as_rows(x, rows), weight_ih_.value(), weight_hh_.value(), bias_ih_.value(), bias_hh_.value(), rows),
      rows);
}

Tensor HeadRnn::run_heads(const Tensor& x, int64_t first, int64_t count) {
  auto part = [&](Parameter& p) {
    return count == p.shape()[1] ? p.value() : slice(p.value(), 1, first, count);
  };
  return op_(x, part(weight_ih_), part(weight_hh_), part(bias_ih_), part(bias_hh_), {});
}

HeadLstm::HeadLstm(int64_t heads, int64_t in, int64_t hidden) : HeadRnn(lstm, 4, heads, in, hidden) {}
HeadGru::HeadGru(int64_t heads, int64_t in, int64_t hidden) : HeadRnn(gru, 3, heads, in, hidden) {}

}  // namespace occam
