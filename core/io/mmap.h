#pragma once
// A file mapped into memory.
#include <cstddef>
#include <filesystem>

namespace occam {

/// Maps a whole file. The mapping is private: writing through it changes this process's memory, never the
/// file. A file replaced by rename stays valid here; one truncated in place by someone else faults on access.
class MappedFile {
 public:
  /// Throws Error{input} naming the file when it cannot be opened or is not a regular file.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::byte* data() const { return data_; }  // null when empty
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace occam
