#pragma once
// Shape contracts. One string per op names the axes of its inputs and outputs:
//   "x: ... i, w: o i, b?: o -> ... o"
// An axis is a name, a number, a multiple (`4*w`), `...` (any axes, the same wherever it stands) or `*` alone
// (any shape, unchecked). `b?` may be absent; `xs*` stands for one or more inputs.
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/shape.h"

namespace occam {

class Contract {
 public:
  /// Throws Error{internal} when the text is malformed.
  explicit Contract(std::string_view text);

  struct Axis {
    std::string name;    // empty for a number or an ellipsis
    int64_t factor = 1;  // the number itself when `name` is empty
    bool ellipsis = false;
  };
  struct Arg {
    std::string name;
    bool optional = false, variadic = false, any = false;
    std::vector<Axis> axes;
  };
  struct Bindings {
    std::map<std::string, int64_t> sizes;
    bool has_ellipsis = false;
    Shape ellipsis;
  };

  const std::string& text() const { return text_; }
  const std::vector<Arg>& inputs() const { return inputs_; }
  const std::vector<Arg>& outputs() const { return outputs_; }
  /// The argument that input number `i` belongs to (the variadic one repeats).
  const Arg& input(size_t i) const;

  /// Checks input shapes (null = absent) and binds the axis names. Throws Error{shape} in the form
  ///   linear: axis `i` is 192 in x [8,197,192] but 384 in w [576,384]
  ///     contract  ...
  Bindings bind(std::string_view op, const std::vector<const Shape*>& shapes,
                std::string_view hint = "") const;
  /// Checks output shapes against the bindings. Throws Error{internal}: an op broke its own contract.
  void check_outputs(std::string_view op, Bindings bindings, const std::vector<const Shape*>& shapes) const;

 private:
  std::string text_;
  std::vector<Arg> inputs_, outputs_;
};

}  // namespace occam
