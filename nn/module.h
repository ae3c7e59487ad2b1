#pragma once
// Modules: a tree of named parts with named parameters. Names are joined by dots and are timm's.
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/scope.h"
#include "nn/parameter.h"

namespace occam {

class Plan;  // nn/plan.h

/// Called after a module's forward with its dotted path, its input and its output.
using ForwardHook = std::function<void(const std::string& path, const Tensor& input, const Tensor& output)>;

class Module {
 public:
  Module() = default;
  virtual ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  /// "Linear", for summaries.
  virtual const char* kind() const = 0;
  /// Runs forward in a Scope of this module's name and tells the hooks.
  Tensor operator()(const Tensor& x);
  /// Symbolic forward: the shape of the output for an input shape (batch axis included), adding to `plan`
  /// what the module costs. Needs no values. Throws Error{shape} for an input that forward would refuse.
  virtual Shape plan(const Shape& x, Plan& plan) const = 0;

  /// Own name; empty for the root of a tree.
  const std::string& name() const { return name_; }
  /// Dotted path from the root.
  std::string path() const;

  using Children = std::vector<std::pair<std::string, Module*>>;
  using Parameters = std::vector<std::pair<std::string, Parameter*>>;
  const Children& children() const { return children_; }
  /// Own parameters, names without dots.
  Parameters parameters() const;
  /// All parameters of the tree with names relative to this module, own ones first, in order of declaration.
  Parameters named_parameters() const;
  /// All parameters of the tree, without their names.
  void each_parameter(const std::function<void(Parameter&)>& fn);
  int64_t parameter_count() const;
  /// The module at a dotted path below this one ("" is this one); null when there is none.
  Module* find(std::string_view path);
  /// This module and all below it, parents first.
  void visit(const std::function<void(Module&)>& fn);
  void visit(const std::function<void(const Module&)>& fn) const;

  /// Mode of dropout and drop path; gradients are not touched.
  void train(bool training = true);
  void eval() { train(false); }
  bool training() const { return training_; }
  /// Marks parameters (not) trainable by a glob on dotted names relative to this module: `*` stands for any
  /// characters, dots too, `?` for one. Returns how many matched; throws Error{usage} when none did.
  int64_t freeze(std::string_view pattern = "*") { return set_trainable(pattern, false); }
  int64_t unfreeze(std::string_view pattern = "*") { return set_trainable(pattern, true); }
  /// Dtype of activations and of the weights that forward sees; masters stay f32.
  void set_compute_dtype(DType dtype);
  DType compute_dtype() const { return dtype_; }
  void to(Device device);
  Device device() const { return device_; }
  void zero_grad();

  /// Removes its hook when destroyed.
  using HookHandle = std::shared_ptr<void>;
  [[nodiscard]] HookHandle add_hook(ForwardHook hook);
  bool has_hooks() const { return hooks_ && !hooks_->empty(); }

 protected:
  virtual Tensor forward(const Tensor& x) = 0;
  /// What calling a module is round its forward: the scope, then the hooks.
  Tensor run(const Tensor& x, const std::function<Tensor()>& forward);
  /// Registers a part, usually a member; its registration ends with it.
  void sub(std::string name, Module& child);
  /// Forgets all parts, to register them anew.
  void clear_subs();
  Parameter& param(std::string name, const Shape& shape, Init init);

 private:
  int64_t set_trainable(std::string_view pattern, bool trainable);
  void collect(const std::string& prefix, Parameters& out) const;

  std::string name_;
  Module* parent_ = nullptr;
  Children children_;
  std::vector<std::pair<std::string, std::unique_ptr<Parameter>>> parameters_;
  std::shared_ptr<std::list<ForwardHook>> hooks_;
  bool training_ = true;
  DType dtype_ = DType::f32;
  Device device_ = kCPU;
};

/// Gives every parameter without values its initial ones, or all of them with `again`. Each depends on (seed,
/// its dotted name) alone.
void initialize(Module& module, uint64_t seed, bool again = false);

/// Names of trainable parameters whose gradient is missing: call after a backward.
std::vector<std::string> parameters_without_grad(const Module& module);

/// `*` stands for any run of characters, `?` for one.
bool glob_match(std::string_view pattern, std::string_view text);

}  // namespace occam
