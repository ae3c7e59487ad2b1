#include "nn/plan.h"

#include "core/check.h"
#include "nn/module.h"

namespace occam {

Shape Plan::run(const Module& module, const Shape& x) {
  const size_t at = rows_.size();
  Row row{module.path(), module.kind(), int(open_.size()), x};
  for (const auto& [name, p] : module.parameters()) row.own_params += p->numel();
  rows_.push_back(std::move(row));
  open_.push_back(at);
  Shape output = module.plan(x, *this);
  open_.pop_back();
  Row& done = rows_[at];
  done.output = output;
  done.params += done.own_params;
  done.macs += done.own_macs;
  if (!open_.empty()) {
    rows_[open_.back()].params += done.params;
    rows_[open_.back()].macs += done.macs;
  }
  return output;
}

void Plan::add_macs(int64_t macs) {
  OCCAM_ASSERT(!open_.empty() && macs >= 0);
  rows_[open_.back()].own_macs += macs;
}

const Plan::Row& Plan::at(std::string_view path) const {
  for (const Row& row : rows_)
    if (row.path == path) return row;
  fail(ErrorKind::usage, "the model has no module \"" + std::string(path) + "\"");
}

Plan plan_of(const Module& module, const Shape& x) {
  Plan plan;
  plan.run(module, x);
  return plan;
}

}  // namespace occam
