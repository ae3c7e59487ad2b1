#pragma once
// Files and folders that appear whole or not at all: written under a temporary name beside the target,
// synced, renamed. A crash leaves the target as it was; at worst a `<name>.tmp-<pid>-<n>` stays behind.
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace occam {

/// True for the names that AtomicFile and AtomicFolder use before they commit.
bool is_temporary_name(std::string_view file_name);

/// One file. Every failure is Error{system} that names the target and the reason ("No space left on device").
class AtomicFile {
 public:
  /// Opens the temporary. Refuses a target that exists and is not a regular file.
  explicit AtomicFile(std::filesystem::path path);
  /// Removes the temporary unless committed.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  /// Syncs and renames; the file is under its name, whole, when this returns.
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  int descriptor_ = -1;
};

/// A folder, a checkpoint say: fill `temporary()`, then commit. A folder already under the name is replaced.
class AtomicFolder {
 public:
  explicit AtomicFolder(std::filesystem::path path);
  /// Removes the temporary folder unless committed.
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  const std::filesystem::path& temporary() const { return temporary_; }
  /// Syncs every file and folder inside, then renames.
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  bool committed_ = false;
};

/// Puts the folder `from` in the place of `to` (same file system); what was at `to` is removed afterwards.
void replace_folder(const std::filesystem::path& from, const std::filesystem::path& to);

void write_file_atomic(const std::filesystem::path& path, std::string_view content);

}  // namespace occam
