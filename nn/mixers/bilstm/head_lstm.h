#pragma once
// The LSTMs of all heads and both directions as a module.
#include "nn/module.h"

namespace occam {

/// [b, t, h, in] -> [b, t, h, 2 hidden]: ops/lstm with its weights as parameters, PyTorch's default values.
class HeadLstm : public Module {
 public:
  HeadLstm(int64_t heads, int64_t in, int64_t hidden);
  const char* kind() const override { return "HeadLstm"; }
  Shape plan(const Shape& x, Plan& plan) const override;
  static int64_t params(int64_t heads, int64_t in, int64_t hidden) {
    return macs(heads, in, hidden) + 2 * heads * 8 * hidden;
  }
  /// Of one token.
  static int64_t macs(int64_t heads, int64_t in, int64_t hidden) {
    return 2 * heads * 4 * hidden * (in + hidden);
  }

 protected:
  Tensor forward(const Tensor& x) override;

 private:
  Parameter &weight_ih_, &weight_hh_, &bias_ih_, &bias_hh_;
};

}  // namespace occam
