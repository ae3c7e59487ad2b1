#pragma once
#include "core/ragged.h"
#include "nn/module.h"

namespace occam {

/// A core made of ops that have ragged forms: x [b,t,h,w], where with `rows` b is 1 and the tokens are the
/// rows of all sequences.
class RaggedCore : public Module {
 public:
  using Module::operator();
  Tensor operator()(const Tensor& x, const Sequences& rows) {
    return run(x, [&] { return forward(x, rows); });
  }
  /// As TokenMixer's.
  virtual std::string why_not_ragged() const { return ""; }

 protected:
  virtual Tensor forward(const Tensor& x, const Sequences& rows) = 0;
  Tensor forward(const Tensor& x) override { return forward(x, {}); }
};

}  // namespace occam
