#include "nn/module.h"

#include <algorithm>
#include <optional>

#include "core/check.h"
#include "nn/plan.h"

namespace occam {

Module::~Module() {
  // Members of a module go before its base: parts take themselves out, so that none is touched afterwards.
  if (parent_) std::erase_if(parent_->children_, [this](const auto& entry) { return entry.second == this; });
  clear_subs();
}

Tensor Module::operator()(const Tensor& x) {
  return run(x, [&] { return forward(x); });
}

Tensor Module::run(const Tensor& x, const std::function<Tensor()>& forward) {
  std::optional<Scope> scope;
  if (!name_.empty()) scope.emplace(name_);
  Tensor y = forward();
  if (has_hooks()) {
    const std::string where = path();
    for (const ForwardHook& hook : *hooks_) hook(where, x, y);
  }
  return y;
}

std::string Module::path() const {
  std::string above = parent_ ? parent_->path() : std::string();
  return above.empty() ? name_ : above + "." + name_;
}

void Module::sub(std::string name, Module& child) {
  for (const auto& [other, _] : children_)
    OCCAM_CHECK(other != name, ErrorKind::internal, "{} has two parts named {}", kind(), name);
  child.name_ = name;
  child.parent_ = this;
  children_.emplace_back(std::move(name), &child);
}

void Module::clear_subs() {
  for (auto& [name, child] : children_) child->parent_ = nullptr;
  children_.clear();
}

Parameter& Module::param(std::string name, const Shape& shape, Init init) {
  parameters_.emplace_back(std::move(name), std::make_unique<Parameter>(shape, std::move(init)));
  return *parameters_.back().second;
}

Module::Parameters Module::parameters() const {
  Parameters out;
  for (const auto& [name, p] : parameters_) out.emplace_back(name, p.get());
  return out;
}

void Module::collect(const std::string& prefix, Parameters& out) const {
  for (const auto& [name, p] : parameters_) out.emplace_back(prefix + name, p.get());
  for (const auto& [name, child] : children_) child->collect(prefix + name + ".", out);
}

Module::Parameters Module::named_parameters() const {
  Parameters out;
  collect("", out);
  return out;
}

void Module::each_parameter(const std::function<void(Parameter&)>& fn) {
  for (auto& [name, p] : parameters_) fn(*p);
  for (auto& [name, child] : children_) child->each_parameter(fn);
}

int64_t Module::parameter_count() const {
  int64_t count = 0;
  for (const auto& [name, p] : named_parameters()) count += p->numel();
  return count;
}

Module* Module::find(std::string_view path) {
  if (path.empty()) return this;
  // A part's name may hold dots ("blocks.3"), so every registered name is tried as a prefix.
  for (const auto& [name, child] : children_) {
    if (path == name) return child;
    if (path.size() > name.size() && path.starts_with(name) && path[name.size()] == '.')
      if (Module* found = child->find(path.substr(name.size() + 1))) return found;
  }
  return nullptr;
}

void Module::visit(const std::function<void(Module&)>& fn) {
  fn(*this);
  for (auto& [name, child] : children_) child->visit(fn);
}

void Module::visit(const std::function<void(const Module&)>& fn) const {
  fn(*this);
  for (const auto& [name, child] : children_) std::as_const(*child).visit(fn);
}

void Module::train(bool training) {
  visit([&](Module& m) { m.training_ = training; });
}

int64_t Module::set_trainable(std::string_view pattern, bool trainable) {
  int64_t matched = 0;
  for (auto& [name, p] : named_parameters()) {
    if (!glob_match(pattern, name)) continue;
    p->set_trainable(trainable);
    ++matched;
  }
  OCCAM_CHECK(matched > 0, ErrorKind::usage, "no parameter of {} matches \"{}\"", kind(), pattern);
  return matched;
}

void Module::set_compute_dtype(DType dtype) {
  visit([&](Module& m) {
    m.dtype_ = dtype;
    for (auto& [name, p] : m.parameters_) p->set_compute_dtype(dtype);
  });
}

void Module::to(Device device) {
  visit([&](Module& m) {
    m.device_ = device;
    for (auto& [name, p] : m.parameters_) p->to(device);
  });
}

void Module::zero_grad() {
  for (auto& [name, p] : named_parameters())
    if (p->has_values()) p->zero_grad();
}

Module::HookHandle Module::add_hook(ForwardHook hook) {
  if (!hooks_) hooks_ = std::make_shared<std::list<ForwardHook>>();
  hooks_->push_back(std::move(hook));
  auto at = std::prev(hooks_->end());
  // The handle may outlive the module: it holds on to the list, not to the module.
  return HookHandle(static_cast<void*>(&*at), [hooks = hooks_, at](void*) { hooks->erase(at); });
}

void initialize(Module& module, uint64_t seed, bool again) {
  for (auto& [name, p] : module.named_parameters())
    if (again || !p->has_values()) p->initialize(hash_name(seed, name), p->device());
}

std::vector<std::string> parameters_without_grad(const Module& module) {
  std::vector<std::string> names;
  for (auto& [name, p] : module.named_parameters())
    if (p->trainable() && !p->grad()) names.push_back(name);
  return names;
}

bool glob_match(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t]) && pattern[p] != '*') {
      ++p, ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace occam
