#pragma once
// The one error type. Every failure a user can meet is an Error with a kind that decides the exit code.
#include <exception>
#include <string>
#include <utility>

namespace occam {

enum class ErrorKind {
  usage,       // command line or config: exit 2
  input,       // a file from outside (checkpoint, image, data set): exit 2
  shape,       // an op's shape or dtype contract: exit 1
  device,      // CUDA, cuBLAS, cuDNN: exit 1
  non_finite,  // NaN or infinity in training: exit 3
  memory,      // out of memory: exit 4
  system,      // operating system (disk full, permission): exit 1
  internal     // a broken invariant of Occam itself: exit 1
};

class Error : public std::exception {
 public:
  /// The message starts with what is wrong, then where, then the fix. The scope path is appended when one is
  /// open.
  Error(ErrorKind kind, std::string message);
  const char* what() const noexcept override { return text_.c_str(); }
  ErrorKind kind() const { return kind_; }
  int exit_code() const;

 private:
  ErrorKind kind_;
  std::string text_;
};

[[noreturn]] void fail(ErrorKind kind, std::string message);

}  // namespace occam
