#include "core/io/mmap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/check.h"

namespace occam {

MappedFile::MappedFile(const std::filesystem::path& path) {
  // O_NONBLOCK: a named pipe must be refused below, not waited for.
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  OCCAM_CHECK(descriptor >= 0, ErrorKind::input, "cannot open {}: {}", path.string(), std::strerror(errno));
  struct stat status;
  void* mapped = nullptr;
  const char* problem = nullptr;
  if (fstat(descriptor, &status) != 0) {
    problem = std::strerror(errno);
  } else if (!S_ISREG(status.st_mode)) {
    problem = S_ISDIR(status.st_mode) ? "it is a folder" : "it is not a regular file";
  } else if (status.st_size > 0) {
    mapped = mmap(nullptr, size_t(status.st_size), PROT_READ | PROT_WRITE, MAP_PRIVATE, descriptor, 0);
    if (mapped == MAP_FAILED) problem = std::strerror(errno);
  }
  close(descriptor);
  OCCAM_CHECK(!problem, ErrorKind::input, "cannot read {}: {}", path.string(), problem);
  data_ = static_cast<std::byte*>(mapped);
  size_ = size_t(status.st_size);
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, size_);
}

}  // namespace occam
