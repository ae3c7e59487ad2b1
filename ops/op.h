#pragma once
// What an op's author includes: the op pattern and the table of all ops. See ops/README.md for how to add
// one.
#include "autograd/apply.h"
#include "core/check.h"
#include "core/dispatch.h"

namespace occam {

/// Every op, in folder order. Suite, support matrix, bench and profiler iterate it.
const std::vector<const OpEntry*>& op_table();

/// At the end of ops/<folder>/op.cpp: OCCAM_REGISTER(<folder>, Op...) lists the folder's ops.
#define OCCAM_REGISTER(folder, ...)                            \
  void register_##folder(std::vector<const OpEntry*>& table) { \
    ::occam::detail::add_entries<__VA_ARGS__>(table);          \
  }                                                            \
  static_assert(true)

namespace detail {
template <class... Ops>
void add_entries(std::vector<const OpEntry*>& table) {
  (table.push_back(&entry_of<Ops>()), ...);
}
}  // namespace detail

/// Bytes of tensors with these shapes in one dtype, for cost().
inline double bytes_of(Shapes shapes, DType dtype) {
  double bytes = 0;
  for (const Shape& s : shapes) bytes += double(s.numel()) * double(size_of(dtype));
  return bytes;
}

}  // namespace occam
