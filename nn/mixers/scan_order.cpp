#include "nn/mixers/scan_order.h"

#include "core/check.h"
#include "ops/gather/op.h"

namespace occam {

std::vector<int64_t> scan_order(const MixerShape& s, const ScanOptions& options) {
  OCCAM_CHECK(options.is_default() || s.has_grid(), ErrorKind::usage,
              "scan order {} with the class token {} needs a patch grid", options.scan, options.cls);
  std::vector<int64_t> order;
  const bool by_column = options.scan == "column";
  const int64_t lines = by_column ? s.grid_w : s.grid_h, length = by_column ? s.grid_h : s.grid_w;
  for (int64_t line = 0; line < lines; ++line)
    for (int64_t i = 0; i < length; ++i) {
      const int64_t at = options.scan == "snake" && line % 2 ? length - 1 - i : i;
      order.push_back(s.prefix + (by_column ? at * s.grid_w + line : line * s.grid_w + at));
    }
  const int64_t patches = int64_t(order.size());
  const int64_t before = options.cls == "first" ? 0 : options.cls == "middle" ? patches / 2 : patches;
  for (int64_t i = 0; i < s.prefix; ++i) order.insert(order.begin() + before + i, i);
  return order;
}

TokenOrder::TokenOrder(const MixerShape& shape, const ScanOptions& options) {
  if (options.is_default()) return;
  const std::vector<int64_t> order = scan_order(shape, options);
  std::vector<int64_t> place(order.size());
  for (size_t i = 0; i < order.size(); ++i) place[size_t(order[i])] = int64_t(i);
  order_ = from_vector(order);
  place_ = from_vector(place);
}

Tensor TokenOrder::select(const Tensor& x, Tensor& index) const {
  if (!index) return x;
  OCCAM_CHECK(x.size(1) == index.numel(), ErrorKind::shape, "{} tokens in a scan order of {}", x.size(1),
              index.numel());
  if (index.device() != x.device()) index = raw::to(index, x.device());
  return index_select(x, 1, index);
}

}  // namespace occam
