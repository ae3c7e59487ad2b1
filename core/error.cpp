#include "core/error.h"

#include "core/scope.h"

namespace occam {

Error::Error(ErrorKind kind, std::string message) : kind_(kind), text_(std::move(message)) {
  if (!Scope::path().empty()) text_ += "\n  where     " + Scope::path();
}

int Error::exit_code() const {
  switch (kind_) {
    case ErrorKind::usage:
    case ErrorKind::input:
      return 2;
    case ErrorKind::non_finite:
      return 3;
    case ErrorKind::memory:
      return 4;
    default:
      return 1;
  }
}

void fail(ErrorKind kind, std::string message) { throw Error(kind, std::move(message)); }

}  // namespace occam
