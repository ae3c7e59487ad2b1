#include "apps/common/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/io/atomic_file.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kStepPrefix = "step-";

void make_folders(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  OCCAM_CHECK(!error, ErrorKind::system, "cannot create the folder {}: {}; choose another out.dir",
              path.string(), error.message());
}

/// No folder, or nothing in it but what a run leaves that was killed as it began.
bool holds_nothing(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return true;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    std::string name = entry.path().filename().string();
    bool opening = (name == "ckpt" && fs::is_empty(entry.path(), error)) ||
                   (name.starts_with("config.resolved.yaml.") && is_temporary_name(name));
    if (!opening) return false;
  }
  return !error;
}

bool is_run(const fs::path& path) { return fs::exists(path / "config.resolved.yaml"); }
bool is_finished(const fs::path& path) { return fs::exists(path / "summary.json"); }

/// Anything beyond what every run writes before its work begins.
bool has_results(const fs::path& path) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    std::string name = entry.path().filename().string();
    bool opening = name == "config.resolved.yaml" || name == "env.json" || is_temporary_name(name) ||
                   ((name == "metrics.jsonl" || name == "ckpt") && fs::is_empty(entry.path(), error));
    if (!opening) return true;
  }
  return false;
}

std::optional<int64_t> step_of(const fs::path& checkpoint) {
  std::string name = checkpoint.filename().string();
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  int64_t step = 0;
  auto [end, error] = std::from_chars(name.data() + kStepPrefix.size(), name.data() + name.size(), step);
  bool whole = error == std::errc() && end == name.data() + name.size();
  return whole ? std::optional<int64_t>(step) : std::nullopt;
}

std::vector<int64_t> steps_in(const fs::path& folder) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder / "ckpt", error))
    if (auto step = step_of(entry.path()); step && entry.is_directory(error)) steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

fs::path checkpoint_in(const fs::path& folder, int64_t step) {
  return folder / "ckpt" / fmt::format("{}{:08}", kStepPrefix, step);
}

/// What a killed run was writing.
void remove_temporaries(const fs::path& path) {
  std::vector<fs::path> stale;
  std::error_code error;
  for (const fs::path& folder : {path, path / "ckpt"})
    for (const auto& entry : fs::directory_iterator(folder, error))
      if (is_temporary_name(entry.path().filename().string())) stale.push_back(entry.path());
  for (const fs::path& entry : stale) fs::remove_all(entry, error);
}

fs::path plain_path(const fs::path& dir) {
  OCCAM_CHECK(!dir.empty(), ErrorKind::usage, "out.dir is empty; name a folder");
  fs::path path = dir.lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // "runs/x/"
  return path == "." || path.filename() == ".." ? fs::absolute(path).lexically_normal() : path;
}

fs::path with_suffix(fs::path path, const char* suffix) { return path += suffix; }

}  // namespace

FolderLock::FolderLock(const fs::path& folder) : path_(with_suffix(folder, ".lock")) {
  for (;;) {
    descriptor_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    OCCAM_CHECK(descriptor_ >= 0, ErrorKind::system, "cannot lock {}: {}: {}; choose another out.dir",
                folder.string(), path_.string(), std::strerror(errno));
    if (flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
      int error = errno;
      char holder[200] = "";
      ssize_t length = pread(descriptor_, holder, sizeof holder - 1, 0);
      close(descriptor_);
      OCCAM_CHECK(error == EWOULDBLOCK, ErrorKind::system, "cannot lock {}: {}", path_.string(),
                  std::strerror(error));
      std::string who(holder, length > 0 ? size_t(length) : 0);
      fail(ErrorKind::usage, fmt::format("{} is in use by {}; wait for it or choose another out.dir",
                                         folder.string(), who.empty() ? "another run" : who));
    }
    // The holder before may have removed the file between our open and our lock: then this lock guards
    // nothing.
    struct stat ours, there;
    bool same = fstat(descriptor_, &ours) == 0 && stat(path_.c_str(), &there) == 0 &&
                ours.st_ino == there.st_ino && ours.st_dev == there.st_dev;
    if (same) break;
    close(descriptor_);
  }
  char host[100] = "";
  gethostname(host, sizeof host - 1);
  std::string who = fmt::format("process {} on {}", getpid(), host);
  // Only for the message above; the lock holds without it.
  if (ftruncate(descriptor_, 0) == 0 && pwrite(descriptor_, who.data(), who.size(), 0) < 0) errno = 0;
}

FolderLock::~FolderLock() {
  unlink(path_.c_str());
  close(descriptor_);
}

RunFolder::RunFolder(const Options& options) : dir_(plain_path(options.dir)) {
  if (dir_.has_parent_path()) make_folders(dir_.parent_path());
  lock_ = std::make_unique<FolderLock>(dir_);
  std::error_code error;
  OCCAM_CHECK(!fs::exists(dir_, error) || fs::is_directory(dir_, error), ErrorKind::usage,
              "out.dir {} is a file; name a folder", dir_.string());
  OCCAM_CHECK(holds_nothing(dir_) || is_run(dir_), ErrorKind::usage,
              "out.dir {} holds files that are no run's; choose another folder", dir_.string());
  choose_place(options);
  make_folders(path_ / "ckpt");
  remove_temporaries(path_);
}

void RunFolder::drop_later_checkpoints() {
  std::error_code error;
  if (!resume_from_ || !fs::equivalent(resume_from_->parent_path(), path_ / "ckpt", error)) return;
  std::optional<int64_t> from = step_of(*resume_from_);
  for (int64_t step : checkpoint_steps())
    if (from && step > *from) fs::remove_all(checkpoint(step), error);
}

void RunFolder::choose_place(const Options& options) {
  fs::path partial = with_suffix(dir_, ".partial");
  bool explicit_checkpoint = !options.resume.empty() && options.resume != "auto";
  std::error_code error;
  if (explicit_checkpoint) {
    resume_from_ = plain_path(options.resume);
    OCCAM_CHECK(fs::is_directory(*resume_from_, error), ErrorKind::usage,
                "--resume {}: no such checkpoint folder; name one of {}, or use --resume auto",
                options.resume, (dir_ / "ckpt/step-*").string());
    fs::path owner = fs::weakly_canonical(*resume_from_, error).parent_path().parent_path();
    for (const fs::path& place : {partial, dir_}) {
      if (!fs::exists(place, error) || !fs::equivalent(owner, place, error)) continue;
      OCCAM_CHECK(!is_finished(place), ErrorKind::usage,
                  "--resume {}: that run is finished; set another out.dir to go on from its checkpoint",
                  options.resume);
      path_ = place;
      return;
    }
  }
  if (options.resume == "auto") {
    for (const fs::path& place : {partial, dir_}) {
      std::vector<int64_t> steps = steps_in(place);
      if (!fs::exists(place, error) || is_finished(place) || steps.empty()) continue;
      path_ = place;
      resume_from_ = checkpoint_in(place, steps.back());
      return;
    }
    OCCAM_CHECK(!is_finished(dir_) || options.overwrite, ErrorKind::usage,
                "{} holds a finished run: there is nothing to resume; choose another out.dir or set "
                "out.overwrite=true",
                dir_.string());
  }

  // A new run. `--resume auto` before the first checkpoint begins again, so one command serves until the run
  // is done.
  bool keep = !holds_nothing(dir_) && (is_finished(dir_) || has_results(dir_));
  bool begin_again = options.resume == "auto" && !is_finished(dir_);
  if (keep && !begin_again) {
    OCCAM_CHECK(options.overwrite, ErrorKind::usage,
                "{} holds {} run; choose another out.dir{} or set out.overwrite=true", dir_.string(),
                is_finished(dir_) ? "a finished" : "an unfinished",
                is_finished(dir_) || steps_in(dir_).empty() ? "" : ", continue it with --resume auto");
  }
  path_ = keep && !begin_again ? partial : dir_;
  if (fs::exists(path_, error)) {
    OCCAM_CHECK(holds_nothing(path_) || is_run(path_), ErrorKind::usage,
                "{} is needed for the new run but holds files that are no run's; move them", path_.string());
    fs::remove_all(path_, error);
    OCCAM_CHECK(!error, ErrorKind::system, "cannot clear {}: {}", path_.string(), error.message());
  }
}

RunFolder::~RunFolder() {
  metrics_.reset();
  std::error_code ignored;
  if (!finished_ && !has_results(path_)) fs::remove_all(path_, ignored);
}

fs::path RunFolder::checkpoint(int64_t step) const { return checkpoint_in(path_, step); }
std::vector<int64_t> RunFolder::checkpoint_steps() const { return steps_in(path_); }

void RunFolder::begin_metrics(int64_t step) {
  drop_later_checkpoints();
  fs::path path = path_ / "metrics.jsonl";
  if (resume_from_ && fs::exists(path)) {
    // Up to the first line of a later step, or one that a kill cut short.
    std::ifstream in(path);
    std::string kept, line;
    while (std::getline(in, line) && !in.eof()) {
      Json value = Json::parse(line, nullptr, false);
      if (!value.is_object()) break;
      if (value.contains("step") && value["step"].is_number() && value["step"].get<double>() > double(step))
        break;
      kept += line + "\n";
    }
    in.close();
    write_file_atomic(path, kept);
  } else {
    write_file_atomic(path, "");
  }
  metrics_.reset(std::fopen(path.c_str(), "ae"));
  OCCAM_CHECK(metrics_, ErrorKind::system, "cannot open {}: {}", path.string(), std::strerror(errno));
}

void RunFolder::log(const Json& line) {
  if (!metrics_) begin_metrics();
  std::string text = dump_json_line(line) + "\n";
  bool written = std::fwrite(text.data(), 1, text.size(), metrics_.get()) == text.size();
  OCCAM_CHECK(written && std::fflush(metrics_.get()) == 0, ErrorKind::system,
              "cannot write {}: {}; free some space and continue from the last checkpoint",
              (path_ / "metrics.jsonl").string(), std::strerror(errno));
}

void RunFolder::finish(const Json& summary) {
  metrics_.reset();
  std::error_code error;
  fs::path checkpoints = path_ / "ckpt";
  if (fs::is_empty(checkpoints, error)) fs::remove(checkpoints, error);
  write_json(path_ / "summary.json", summary);
  if (path_ != dir_) {
    replace_folder(path_, dir_);
    path_ = dir_;
  }
  finished_ = true;
}

fs::path default_run_dir(const std::string& app) {
  std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", &local);
  fs::path path = fs::path("runs") / fmt::format("{}-{}", app, stamp);
  for (int n = 2; fs::exists(path) || fs::exists(with_suffix(path, ".lock")); ++n)
    path = fs::path("runs") / fmt::format("{}-{}-{}", app, stamp, n);
  return path;
}

}  // namespace occam
