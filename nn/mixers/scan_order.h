#pragma once
// The order in which a sequential core meets the tokens.
#include "core/config.h"
#include "core/tensor.h"
#include "nn/mixers/mixer.h"

namespace occam {

/// Options `scan` and `cls` of every mixer whose result depends on the order. The defaults are the order of
/// the model itself and cost nothing.
struct ScanOptions {
  std::string scan = "row", cls = "first";

  template <class V>
  void visit(V& v) {
    v("scan", scan, "order of the patches: row by row, column by column, or rows in alternating direction",
      Choices{"row", "column", "snake"});
    v("cls", cls, "where the class token (and a distillation token with it) stands among the patches",
      Choices{"first", "middle", "last"});
  }
  bool is_default() const { return scan == "row" && cls == "first"; }
};

/// order[i] is the token that comes i-th. In the middle n/2 of n patches, rounded down, precede the class
/// token. Throws Error{usage} when the order is not the default and the shape has no patch grid.
std::vector<int64_t> scan_order(const MixerShape& shape, const ScanOptions& options);

/// Brings tokens into an order and back.
class TokenOrder {
 public:
  TokenOrder(const MixerShape& shape, const ScanOptions& options);
  bool is_default() const { return !order_; }
  /// x [b, t, c] in the order; x itself for the default. Throws Error{shape} for another number of tokens.
  Tensor arrange(const Tensor& x) { return select(x, order_); }
  /// The inverse.
  Tensor restore(const Tensor& y) { return select(y, place_); }

 private:
  Tensor select(const Tensor& x, Tensor& index) const;

  Tensor order_, place_;  // i64 [t]; undefined for the default
};

}  // namespace occam
