#pragma once
// A model's ledger without running it: shapes, exact parameter counts and multiply-adds of every module.
#include <cstdint>
#include <string>
#include <vector>

#include "core/shape.h"

namespace occam {

class Module;

class Plan {
 public:
  struct Row {
    std::string path;  // "" for the root
    std::string kind;
    int depth = 0;
    Shape input, output;
    int64_t own_params = 0, own_macs = 0;
    int64_t params = 0, macs = 0;  // with everything below
  };

  /// Plans a part and returns the shape of its output; called by Module::plan for each part in forward's
  /// order.
  Shape run(const Module& module, const Shape& x);
  /// Adds multiply-adds to the module being planned. Only products are counted: matrix products, attention's
  /// two products, recurrences; not biases, norms, activations or softmax.
  void add_macs(int64_t macs);

  /// Parents before their parts, in forward's order.
  const std::vector<Row>& rows() const { return rows_; }
  const Row& total() const { return rows_.front(); }
  /// Throws Error{usage} when no module has this path.
  const Row& at(std::string_view path) const;

 private:
  std::vector<Row> rows_;
  std::vector<size_t> open_;
};

/// The ledger of `module` for input of shape `x` (batch axis included; 1 for costs of one image).
Plan plan_of(const Module& module, const Shape& x);

}  // namespace occam
