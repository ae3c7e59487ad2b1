#include "tests/apps/process.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <stdexcept>

#include "tests/core/temp_folder.h"

namespace occam {
namespace fs = std::filesystem;
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string temporary_file() {
  std::string name = (fs::temp_directory_path() / "occam_out_XXXXXX").string();
  int descriptor = mkstemp(name.data());
  if (descriptor < 0) throw std::runtime_error("mkstemp failed");
  close(descriptor);
  return name;
}

void redirect(const char* path, int target) {
  int descriptor = open(path, O_WRONLY | O_CREAT, 0600);
  if (descriptor < 0 || dup2(descriptor, target) < 0) _exit(126);
  close(descriptor);
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
    : deadline_(now() + options.seconds), out_(temporary_file()), err_(temporary_file()) {
  std::vector<std::string> words{program.string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const std::string out = options.out.empty() ? out_ : options.out.string();

  id_ = fork();
  if (id_ < 0) throw std::runtime_error("fork failed");
  if (id_ > 0) return;
  redirect(out.c_str(), STDOUT_FILENO);
  redirect(err_.c_str(), STDERR_FILENO);
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
  unlink(out_.c_str());
  unlink(err_.c_str());
}

void Process::signal(int number) const { kill(id_, number); }
double Process::left() const { return deadline_ - now(); }

bool Process::ended() {
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
  return {*status_, read_bytes(out_), read_bytes(err_)};
}

ProcessResult run_process(const fs::path& program, const std::vector<std::string>& arguments,
                          const ProcessOptions& options) {
  return Process(program, arguments, options).wait();
}

}  // namespace occam
