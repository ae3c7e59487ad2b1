#include "core/scope.h"

#include <algorithm>
#include <utility>

#if OCCAM_CUDA
#include "core/cuda/backend.h"
#endif

namespace occam {

namespace {
std::string& mutable_path() {
  thread_local std::string path;
  return path;
}
}  // namespace

Scope::Scope(std::string_view name) {
  std::string& path = mutable_path();
  previous_length_ = path.size();
  if (!path.empty()) path += '.';
  path += name;
#if OCCAM_CUDA
  cuda::range_push(path.c_str());
#endif
}

Scope::~Scope() {
  mutable_path().resize(previous_length_);
#if OCCAM_CUDA
  cuda::range_pop();
#endif
}

std::string place_of(std::string_view path) {
  std::string out;
  for (size_t i = 0; i < path.size();) {
    const size_t end = std::min(path.find('.', i), path.size());
    const std::string_view part = path.substr(i, end - i);
    const bool number =
        !part.empty() && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    out += number ? "*" : part;
    if (end < path.size()) out += '.';
    i = end + 1;
  }
  return out;
}

ScopeAt::ScopeAt(std::string path) : previous_(std::move(path)) {
  std::swap(previous_, mutable_path());
#if OCCAM_CUDA
  cuda::range_push(mutable_path().c_str());
#endif
}

ScopeAt::~ScopeAt() {
  std::swap(previous_, mutable_path());
#if OCCAM_CUDA
  cuda::range_pop();
#endif
}

const std::string& Scope::path() { return mutable_path(); }

}  // namespace occam
