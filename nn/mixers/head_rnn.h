#pragma once
// The recurrent networks of all heads and both directions as a module.
#include "nn/mixers/ragged_core.h"

namespace occam {

/// [b, t, h, in] -> [b, t, h, 2 hidden]: an op of ops/lstm with its weights as parameters, PyTorch's default
/// values.
class HeadRnn : public RaggedCore {
 public:
  using Op = Tensor(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                    const Tensor& b_hh, const Sequences& rows);
  HeadRnn(Op* op, int64_t gates, int64_t heads, int64_t in, int64_t hidden);
  Shape plan(const Shape& x, Plan& plan) const override;

 protected:
  Tensor forward(const Tensor& x, const Sequences& rows) override;
  /// x of `count` heads, those from `first` on.
  Tensor run_heads(const Tensor& x, int64_t first, int64_t count);

 private:
  Op* op_;
  Parameter &weight_ih_, &weight_hh_, &bias_ih_, &bias_hh_;
};

/// What the modules of either cell cost.
template <int64_t kGates>
struct RnnCost {
  static int64_t params(int64_t heads, int64_t in, int64_t hidden) {
    return macs(heads, in, hidden) + 2 * heads * 2 * kGates * hidden;
  }
  /// Of one token.
  static int64_t macs(int64_t heads, int64_t in, int64_t hidden) {
    return 2 * heads * kGates * hidden * (in + hidden);
  }
};

class HeadLstm : public HeadRnn, public RnnCost<4> {
 public:
  HeadLstm(int64_t heads, int64_t in, int64_t hidden);
  const char* kind() const override { return "HeadLstm"; }
};

class HeadGru : public HeadRnn, public RnnCost<3> {
 public:
  HeadGru(int64_t heads, int64_t in, int64_t hidden);
  const char* kind() const override { return "HeadGru"; }
};

}  // namespace occam
