#pragma once
// A thread-local path of names ("blocks.3.attn"), for error messages, random keys and profiler ranges.
#include <string>
#include <string_view>

namespace occam {

class Scope {
 public:
  explicit Scope(std::string_view name);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  /// Names of the open scopes joined by dots; empty outside all.
  static const std::string& path();

 private:
  size_t previous_length_;
};

/// A path with its numbers as stars: "blocks.3.mlp" as "blocks.*.mlp".
std::string place_of(std::string_view path);

/// Puts another path in place of the open scopes while it lives: work that is done again elsewhere goes by
/// the names it had.
class ScopeAt {
 public:
  explicit ScopeAt(std::string path);
  ~ScopeAt();
  ScopeAt(const ScopeAt&) = delete;
  ScopeAt& operator=(const ScopeAt&) = delete;

 private:
  std::string previous_;
};

}  // namespace occam
