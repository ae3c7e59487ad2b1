#include "nn/layers/dropout.h"

#include "core/check.h"
#include "core/rng.h"
#include "ops/dropout/op.h"

namespace occam {

namespace {
double checked(double p, const char* what) {
  OCCAM_CHECK(p >= 0 && p < 1, ErrorKind::usage, "{}: the probability must be in [0, 1), not {}", what, p);
  return p;
}
}  // namespace

Dropout::Dropout(double p) : p_(checked(p, "dropout")) {}
Tensor Dropout::forward(const Tensor& x) { return p_ > 0 ? dropout(x, p_, training()) : x; }

DropPath::DropPath(double p) : p_(checked(p, "drop path")) {}
Tensor DropPath::forward(const Tensor& x) { return p_ > 0 ? drop_path(x, p_, training()) : x; }

BranchDrop DropPath::draw() {
  if (p_ == 0 || !training()) return {};
  Scope scope(name());
  return {p_, op_random::next_key(), op_random::step_tensor(device())};
}

}  // namespace occam
