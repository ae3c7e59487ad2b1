#pragma once
// The folder of one run:
//   config.resolved.yaml env.json metrics.jsonl summary.json report.html ckpt/step-<n>/
// summary.json is written last: a folder that has it is a finished run.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/io/json.h"

namespace occam {

/// A lock that ends with its holder, however it ends: flock on a file beside the folder.
class FolderLock {
 public:
  /// Throws Error{usage} that names the holder when `folder` is in use.
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

/// Finished results stay where they are until the new ones are ready: with `overwrite` over a folder that
/// holds a run, the new one works in `<dir>.partial` beside it, and finish() puts that in its place. So an
/// app writes all its files under path(), and names them in summary.json relative to it.
class RunFolder {
 public:
  struct Options {
    std::filesystem::path dir;
    bool overwrite = false;
    std::string resume;  // empty, "auto" or the path of a checkpoint
  };
  /// Throws Error{usage} when the folder is in use, holds a run and neither `overwrite` nor `resume` is set,
  /// holds other files, or has nothing to resume. Temporaries of a killed run are removed.
  explicit RunFolder(const Options& options);
  /// An unfinished run without results (no checkpoint, no metrics, no other files) leaves no folder.
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  /// Where this run writes now.
  const std::filesystem::path& path() const { return path_; }
  /// Where it stands in the end.
  const std::filesystem::path& dir() const { return dir_; }

  /// "ckpt/step-<n>" under path(); the parent exists.
  std::filesystem::path checkpoint(int64_t step) const;
  /// Steps that have a checkpoint, rising.
  std::vector<int64_t> checkpoint_steps() const;
  /// The checkpoint to continue from; empty for a new run.
  const std::optional<std::filesystem::path>& resume_from() const { return resume_from_; }

  /// Begins metrics.jsonl. When resuming, call it once the checkpoint has been read: what was logged after
  /// `step` is cut off, and checkpoints after the one that is resumed go.
  void begin_metrics(int64_t step = 0);
  /// Appends one line, at once. Lines of a run that can be resumed carry their "step".
  void log(const Json& line);

  /// Writes summary.json, which makes the run a finished one, and puts the folder under its name.
  void finish(const Json& summary);
  bool finished() const { return finished_; }

 private:
  void choose_place(const Options& options);
  /// Going on from an earlier checkpoint gives up what followed it, or the next `--resume auto` would mix the
  /// two.
  void drop_later_checkpoints();

  std::filesystem::path dir_, path_;
  std::unique_ptr<FolderLock> lock_;
  std::optional<std::filesystem::path> resume_from_;
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, CloseFile> metrics_;
  bool finished_ = false;
};

/// "runs/<app>-20260131-235959", the default of out.dir; a number is added when it is taken.
std::filesystem::path default_run_dir(const std::string& app);

}  // namespace occam
