#include "tests/apps/process.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <stdexcept>

namespace occam {
namespace fs = std::filesystem;
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void open_pipe(int (&ends)[2]) {
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
}

/// In the child: `file` or else the pipe becomes descriptor `target`.
void redirect(const fs::path& file, int pipe_end, int target) {
  int descriptor = file.empty() ? pipe_end : open(file.c_str(), O_WRONLY | O_CREAT, 0600);
  if (descriptor < 0 || dup2(descriptor, target) < 0) _exit(126);
}

void read_all(int descriptor, std::string& text) {
  char buffer[4096];
  for (ssize_t count; (count = read(descriptor, buffer, sizeof buffer)) > 0;)
    text.append(buffer, size_t(count));
}

void limit(int resource, rlim_t value) {
  rlimit both{value, value};
  if (setrlimit(resource, &both) != 0) _exit(126);
}

}  // namespace

bool can_limit_memory() {
#if defined(__SANITIZE_ADDRESS__)
  return false;
#else
  return true;
#endif
}

Process::Process(const fs::path& program, const std::vector<std::string>& arguments,
                 const ProcessOptions& options)
    : deadline_(now() + options.seconds) {
  std::vector<std::string> words{program.string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  int out[2], err[2];
  open_pipe(out);
  open_pipe(err);

  id_ = fork();
  if (id_ < 0) throw std::runtime_error("fork failed");
  if (id_ > 0) {
    close(out[1]);
    close(err[1]);
    out_pipe_ = out[0];
    err_pipe_ = err[0];
    return;
  }
  redirect(options.out, out[1], STDOUT_FILENO);
  redirect(options.err, err[1], STDERR_FILENO);
  if (!options.folder.empty() && chdir(options.folder.c_str()) != 0) _exit(126);
  if (options.obeys_permissions && geteuid() == 0) {
    if (prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE) != 0) _exit(125);
    if (prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH) != 0) _exit(125);
  }
  if (options.file_bytes) limit(RLIMIT_FSIZE, *options.file_bytes);
  if (options.memory && can_limit_memory()) limit(RLIMIT_AS, *options.memory);
  execv(argv[0], argv.data());
  _exit(127);
}

Process::~Process() {
  if (id_ > 0 && !status_) {
    kill(id_, SIGKILL);
    waitpid(id_, nullptr, 0);
  }
  close(out_pipe_);
  close(err_pipe_);
}

void Process::signal(int number) const { kill(id_, number); }
double Process::left() const { return deadline_ - now(); }

void Process::drain() {
  read_all(out_pipe_, out_);
  read_all(err_pipe_, err_);
}

bool Process::ended() {
  drain();
  int status = 0;
  if (!status_ && waitpid(id_, &status, WNOHANG) == id_)
    status_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return status_.has_value();
}

bool Process::wait_until(const std::function<bool()>& condition) {
  while (!condition()) {
    if (ended() || left() < 0) return false;
    usleep(200);
  }
  return true;
}

ProcessResult Process::wait() {
  wait_until([this] { return ended(); });
  if (!status_) {
    kill(id_, SIGKILL);
    waitpid(id_, nullptr, 0);
    status_ = ProcessResult::kTimeOut;
  }
  drain();
  return {*status_, out_, err_};
}

ProcessResult run_process(const fs::path& program, const std::vector<std::string>& arguments,
                          const ProcessOptions& options) {
  return Process(program, arguments, options).wait();
}

}  // namespace occam
