#include "core/scope.h"

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

const std::string& Scope::path() { return mutable_path(); }

}  // namespace occam
