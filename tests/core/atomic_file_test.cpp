#include "core/io/atomic_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <vector>

#include "core/io/mmap.h"
#include "tests/core/expect_error.h"
#include "tests/core/temp_folder.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

size_t entries_in(const fs::path& folder) {
  size_t count = 0;
  for (auto it = fs::directory_iterator(folder); it != fs::directory_iterator(); ++it) ++count;
  return count;
}

TEST(AtomicFile, AppearsOnlyWhenCommitted) {
  TempFolder folder;
  fs::path path = folder / "a.bin";
  {
    AtomicFile file(path);
    file.write("one ");
    EXPECT_FALSE(fs::exists(path));
    file.write("two");
    file.commit();
  }
  EXPECT_EQ(read_bytes(path), "one two");
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST(AtomicFile, LeavesTheOldFileAndNoTemporaryWhenAbandoned) {
  TempFolder folder;
  fs::path path = folder / "a.bin";
  write_bytes(path, "old");
  { AtomicFile(path).write("new"); }
  EXPECT_EQ(read_bytes(path), "old");
  EXPECT_EQ(entries_in(folder.path()), 1u);
  write_file_atomic(path, "new");
  EXPECT_EQ(read_bytes(path), "new");
}

// A full disk, stood in for by the limit on file size (EFBIG in place of ENOSPC).
TEST(AtomicFile, FullDiskNamesTheFileAndKeepsTheOldOne) {
  TempFolder folder;
  fs::path path = folder / "big.bin";
  write_bytes(path, "old");
  auto previous_handler = signal(SIGXFSZ, SIG_IGN);
  rlimit previous{};
  getrlimit(RLIMIT_FSIZE, &previous);
  rlimit small{64 * 1024, previous.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  std::string content(256 * 1024, 'x');
  EXPECT_OCCAM_ERROR(write_file_atomic(path, content), ErrorKind::system, path.string());
  setrlimit(RLIMIT_FSIZE, &previous);
  signal(SIGXFSZ, previous_handler);
  EXPECT_EQ(read_bytes(path), "old");
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST(AtomicFile, RefusesWhatItMustNotReplace) {
  TempFolder folder;
  EXPECT_OCCAM_ERROR(AtomicFile(folder / "absent/a.bin"), ErrorKind::system, "create the folder first");
  EXPECT_OCCAM_ERROR(AtomicFile("/dev/null"), ErrorKind::usage, "not a regular file");
  EXPECT_OCCAM_ERROR(AtomicFile(folder.path()), ErrorKind::usage, "not a regular file");
}

TEST(AtomicFolder, IsPublishedWholeAndReplaces) {
  TempFolder folder;
  fs::path path = folder / "step-10";
  for (std::string content : {"first", "second"}) {
    AtomicFolder checkpoint(path);
    write_bytes(checkpoint.temporary() / "model", content);
    fs::create_directory(checkpoint.temporary() / "sub");
    write_bytes(checkpoint.temporary() / "sub" / "x", content);
    EXPECT_EQ(fs::exists(path), content == "second");
    checkpoint.commit();
    EXPECT_EQ(read_bytes(path / "model"), content);
    EXPECT_EQ(read_bytes(path / "sub" / "x"), content);
    EXPECT_EQ(entries_in(folder.path()), 1u);
  }
}

TEST(AtomicFolder, LeavesNothingWhenAbandoned) {
  TempFolder folder;
  {
    AtomicFolder checkpoint(folder / "step-10/");
    write_bytes(checkpoint.temporary() / "model", "x");
    EXPECT_TRUE(is_temporary_name(checkpoint.temporary().filename().string()));
  }
  EXPECT_EQ(entries_in(folder.path()), 0u);
  EXPECT_FALSE(is_temporary_name("step-10"));
  EXPECT_FALSE(is_temporary_name(".tmp-1"));
  EXPECT_FALSE(is_temporary_name("a.tmp-x"));
}

TEST(MappedFile, ReadsAndNeverWritesTheFile) {
  TempFolder folder;
  fs::path path = folder / "a.bin";
  write_bytes(path, "abc");
  MappedFile file(path);
  ASSERT_EQ(file.size(), 3u);
  EXPECT_EQ(char(file.data()[1]), 'b');
  file.data()[1] = std::byte{'X'};
  EXPECT_EQ(read_bytes(path), "abc");
  write_bytes(folder / "empty", "");
  EXPECT_EQ(MappedFile(folder / "empty").size(), 0u);
  EXPECT_OCCAM_ERROR(MappedFile(folder / "absent"), ErrorKind::input, "No such file");
  EXPECT_OCCAM_ERROR(MappedFile(folder.path()), ErrorKind::input, "it is a folder");
}

}  // namespace
}  // namespace occam
