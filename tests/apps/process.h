#pragma once
// Runs a built app as a process: with limits, with signals, and with what it printed in hand.
#include <sys/resource.h>
#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace occam {

struct ProcessOptions {
  std::filesystem::path folder;              // working directory; empty: this process's
  std::optional<rlim_t> file_bytes, memory;  // RLIMIT_FSIZE, RLIMIT_AS (left out under AddressSanitizer)
  bool obeys_permissions = false;            // takes from root the right to ignore permissions
  std::filesystem::path out, err;            // files for its output, instead of what `wait` returns
  double seconds = 60;                       // then it is killed, and `code` says so
};

struct ProcessResult {
  static constexpr int kTimeOut = -1000;
  int code = 0;  // exit code; minus the signal that ended it; kTimeOut
  std::string out, err;
};

class Process {
 public:
  Process(const std::filesystem::path& program, const std::vector<std::string>& arguments,
          const ProcessOptions& options = {});
  /// Kills what still runs.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t id() const { return id_; }
  void signal(int number) const;
  /// Polls until `condition` holds (true), or until the process has ended or the time is up (false).
  bool wait_until(const std::function<bool()>& condition);
  ProcessResult wait();

 private:
  bool ended();
  void drain();
  double left() const;

  pid_t id_ = -1;
  std::optional<int> status_;
  double deadline_;
  // Pipes, since a file would fall under the process's own limits.
  int out_pipe_ = -1, err_pipe_ = -1;
  std::string out_, err_;
};

ProcessResult run_process(const std::filesystem::path& program, const std::vector<std::string>& arguments,
                          const ProcessOptions& options = {});

/// True when a limit on address space can be put on the apps: AddressSanitizer needs all of it.
bool can_limit_memory();

}  // namespace occam
