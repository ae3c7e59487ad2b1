#include "core/io/atomic_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "core/check.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void fail_write(const fs::path& path, const char* doing, int error) {
  const char* fix =
      error == ENOSPC || error == EDQUOT || error == EFBIG  ? "free some space or choose another folder"
      : error == EACCES || error == EPERM || error == EROFS ? "check the permissions or choose another folder"
      : error == ENOENT                                     ? "create the folder first"
                                                            : "check the disk";
  fail(ErrorKind::system, fmt::format("cannot write {}: {} ({}); nothing was changed there; {}",
                                      path.string(), std::strerror(error), doing, fix));
}

fs::path temporary_beside(const fs::path& path) {
  static std::atomic<int> count{0};
  fs::path name = path;
  name += fmt::format(".tmp-{}-{}", getpid(), count++);
  return name;
}

/// "runs/x/" names the same folder as "runs/x", and a rename wants the latter.
fs::path without_trailing_slash(fs::path path) { return path.has_filename() ? path : path.parent_path(); }

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

/// Syncs a file or a folder by name; returns errno, 0 when fine.
int sync_path(const fs::path& path) {
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return errno;
  int error = fsync(descriptor) != 0 ? errno : 0;
  close(descriptor);
  // Some file systems cannot sync a folder; the rename itself is still atomic there.
  return error == EINVAL || error == ENOTSUP ? 0 : error;
}

}  // namespace

bool is_temporary_name(std::string_view name) {
  size_t at = name.rfind(".tmp-");
  if (at == std::string_view::npos || at == 0) return false;
  std::string_view tail = name.substr(at + 5);
  return !tail.empty() &&
         std::all_of(tail.begin(), tail.end(), [](char c) { return (c >= '0' && c <= '9') || c == '-'; });
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), temporary_(temporary_beside(path_)) {
  OCCAM_CHECK(path_.has_filename(), ErrorKind::usage, "cannot write '{}': it does not name a file",
              path_.string());
  std::error_code ignored;
  fs::file_status status = fs::status(path_, ignored);
  OCCAM_CHECK(!fs::exists(status) || fs::is_regular_file(status), ErrorKind::usage,
              "cannot write {}: it exists and is not a regular file; choose another name", path_.string());
  descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_write(path_, "opening", errno);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  OCCAM_ASSERT(descriptor_ >= 0);
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    // Linux writes at most 2^31 - 4096 bytes a call.
    ssize_t written = ::write(descriptor_, at, std::min<size_t>(bytes, size_t(1) << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_write(path_, "writing", errno);
    at += written;
    bytes -= size_t(written);
  }
}

void AtomicFile::commit() {
  OCCAM_ASSERT(descriptor_ >= 0);
  if (fsync(descriptor_) != 0) fail_write(path_, "syncing", errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) fail_write(path_, "renaming", errno);
  int error = close(descriptor_) != 0 ? errno : 0;
  descriptor_ = -1;
  if (error == 0) error = sync_path(folder_of(path_));
  if (error != 0) fail_write(path_, "syncing the folder", error);
}

AtomicFolder::AtomicFolder(fs::path path)
    : path_(without_trailing_slash(std::move(path))), temporary_(temporary_beside(path_)) {
  if (mkdir(temporary_.c_str(), 0777) != 0) fail_write(path_, "creating the folder", errno);
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(temporary_, ignored);
}

void AtomicFolder::commit() {
  std::error_code error;
  fs::recursive_directory_iterator entry(temporary_, error), end;
  for (; !error && entry != end; entry.increment(error)) {
    if (entry->is_symlink(error)) continue;
    if (int code = sync_path(entry->path()); code != 0) fail_write(path_, "syncing", code);
  }
  if (error) fail_write(path_, "syncing", error.value());
  if (int code = sync_path(temporary_); code != 0) fail_write(path_, "syncing", code);
  replace_folder(temporary_, path_);
  committed_ = true;
}

void replace_folder(const fs::path& from, const fs::path& to) {
  fs::path removed;
  if (rename(from.c_str(), to.c_str()) != 0) {
    if (errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR) fail_write(to, "renaming", errno);
    if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
      removed = from;
    } else {
      // A file system that cannot exchange names: for a moment there is no folder under the name.
      removed = temporary_beside(to);
      if (rename(to.c_str(), removed.c_str()) != 0) fail_write(to, "moving the old folder aside", errno);
      if (rename(from.c_str(), to.c_str()) != 0) {
        int error = errno;
        rename(removed.c_str(), to.c_str());
        fail_write(to, "renaming", error);
      }
    }
  }
  if (int error = sync_path(folder_of(to)); error != 0) fail_write(to, "syncing the folder", error);
  std::error_code ignored;
  if (!removed.empty()) fs::remove_all(removed, ignored);
}

void write_file_atomic(const fs::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

}  // namespace occam
