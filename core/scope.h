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

}  // namespace occam
