#include "apps/common/app.h"

#include <omp.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "apps/common/environment.h"
#include "apps/common/yaml.h"
#include "core/check.h"
#include "core/io/atomic_file.h"
#include "nn/module.h"

namespace occam {
namespace {

std::atomic<bool> stop_flag{false};
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void on_stop_signal(int) {
  stop_flag.store(true);
  constexpr char kText[] = "\nstopping (once more: stop at once)\n";
  if (write(STDERR_FILENO, kText, sizeof kText - 1) < 0) return;
}

void install_signals() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  action.sa_flags = SA_RESETHAND | SA_RESTART;  // the second signal finds the default: it kills
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  // A file-size limit must come back from write() as an error that names the file.
  signal(SIGXFSZ, SIG_IGN);
}

/// Settings that may differ between two parts of one run: they do not change its result.
constexpr std::array kFreeOnResume{"out.*",       "threads",      "data.workers", "data.root",
                                   "*.log_every", "*.save_every", "*.eval_every"};

/// One line on the standard error. What cannot be written there, to a log on a full disk say, must not end a
/// run or change its exit code.
template <class... Args>
void tell(fmt::format_string<Args...> format, Args&&... args) {
  std::fputs(fmt::format(format, std::forward<Args>(args)...).c_str(), stderr);
}

/// Thrown by App::checked under --check.
struct CheckDone {};

void print_out(const std::string& text) {
  bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  OCCAM_CHECK(written, ErrorKind::system, "cannot write to the standard output");
}

int run_or_throw(const std::vector<std::string>& words, const AppInfo& info, const app_detail::Steps& steps) {
  Arguments arguments = parse_arguments({words.begin() + 1, words.end()}, info);
  if (arguments.help) {
    ConfigNode defaults = steps.defaults();
    print_out(arguments.help_key.empty() ? help_text(info, defaults)
                                         : help_text_of(info, defaults, arguments.help_key));
    return 0;
  }
  steps.read(load_config(arguments));
  if (arguments.print_config) {
    print_out(dump_yaml(steps.describe(), true));
    return 0;
  }
  App app(info, arguments, words);
  try {
    steps.run(app);
    app.close();
  } catch (const CheckDone&) {
    if (!app.json()) print_out(info.name + ": the command line, config and input are fine\n");
    return 0;
  }
  return 0;
}

}  // namespace

bool stop_requested() { return stop_flag.load(); }

Device device_from(const std::string& name) {
  if (name == "cpu") return kCPU;
  if (name == "auto") return cuda_available() ? cuda_device() : kCPU;
  std::string_view rest = name;
  int index = 0;
  bool known = rest.starts_with("cuda");
  rest.remove_prefix(known ? 4 : 0);
  if (known && !rest.empty()) {
    auto [end, error] = std::from_chars(rest.data() + 1, rest.data() + rest.size(), index);
    known = rest[0] == ':' && rest.size() > 1 && index >= 0 && error == std::errc() &&
            end == rest.data() + rest.size();
  }
  OCCAM_CHECK(known, ErrorKind::usage, "--device {}: expected auto, cpu, cuda or cuda:N", name);
  OCCAM_CHECK(cuda_available(), ErrorKind::usage,
              "--device {}: no usable GPU, or a build without CUDA; use --device cpu", name);
  OCCAM_CHECK(index < cuda_device_count(), ErrorKind::usage,
              "--device {}: there are {} GPUs, numbered from 0", name, cuda_device_count());
  return cuda_device(index);
}

App::App(const AppInfo& info, Arguments arguments, const std::vector<std::string>& command_line)
    : info_(info), arguments_(std::move(arguments)), command_line_(command_line) {}

void App::set_up(CommonConfig& config) {
  device_ = device_from(arguments_.device);
  if (config.precision == "auto") config.precision = device_.is_cuda() ? "bf16" : "f32";
  OCCAM_CHECK(config.precision != "tf32" || device_.is_cuda(), ErrorKind::usage,
              "precision: tf32 exists on a GPU only; use f32 or bf16 on the CPU");
  if (config.threads > 0) omp_set_num_threads(int(config.threads));
  if (config.out.dir.empty() && info_.run_folder) {
    OCCAM_CHECK(arguments_.resume != "auto", ErrorKind::usage,
                "--resume auto needs out.dir: the folder of the run");
    config.out.dir = default_run_dir(info_.name).string();
  }
}

void App::checked() const {
  if (arguments_.check) throw CheckDone{};
}

RunFolder& App::start_run(const CommonConfig::Out& out, const ConfigNode& resolved) {
  checked();
  run_ = std::make_unique<RunFolder>(
      RunFolder::Options{.dir = out.dir, .overwrite = out.overwrite, .resume = arguments_.resume});
  std::filesystem::path config_path = run_->path() / "config.resolved.yaml";
  if (run_->resume_from()) {
    compare_with_earlier_part(resolved);
    tell("{}: continuing from {}\n", info_.name, run_->resume_from()->string());
  }
  write_file_atomic(config_path, dump_yaml(resolved));
  write_json(run_->path() / "env.json", describe_environment(info_.name, command_line_, device_));
  return *run_;
}

void App::compare_with_earlier_part(const ConfigNode& resolved) const {
  // ckpt/step-<n> stands in the run that it is of.
  const std::filesystem::path& from = *run_->resume_from();
  std::filesystem::path owner = std::filesystem::weakly_canonical(from).parent_path().parent_path();
  if (!std::filesystem::exists(owner / "config.resolved.yaml")) return;
  std::string changes;
  for (const std::string& change : config_changes(read_yaml(owner / "config.resolved.yaml"), resolved)) {
    bool free = std::any_of(kFreeOnResume.begin(), kFreeOnResume.end(), [&](const char* pattern) {
      return glob_match(pattern, change.substr(0, change.find(": ")));
    });
    if (!free) changes += "\n  " + change;
  }
  if (changes.empty()) return;
  std::error_code error;
  OCCAM_CHECK(
      !std::filesystem::equivalent(owner, run_->path(), error), ErrorKind::usage,
      "{} was begun with other settings, and going on would mix two runs:{}\n  fix       use the earlier "
      "settings; or begin another run from there, with a new out.dir and --resume {}",
      run_->dir().string(), changes, from.string());
  tell("{}: changed since {}:{}\n", info_.name, from.string(), changes);
}

void App::print(const std::string& text) const {
  if (!json()) print_out(text);
}

void App::line(const Json& row) {
  if (!json()) return;
  print_out(dump_json_line(row) + "\n");
  printed_lines_ = true;
}

void App::finish(const Json& summary) {
  if (run_) run_->finish(summary);
  finished_ = true;
  if (json() && !printed_lines_) {
    print_out(dump_json(summary));
  } else if (run_ && !json()) {
    tell("{}: results are in {}\n", info_.name, run_->dir().string());
  }
}

void App::close() const {
  if (finished_ || !run_) return;
  OCCAM_CHECK(!stop_requested(), ErrorKind::system, "stopped before the end{}",
              run_->checkpoint_steps().empty()
                  ? std::string("; nothing was saved")
                  : fmt::format("; continue with the same command, out.dir={} and --resume auto",
                                run_->dir().string()));
}

namespace app_detail {

/// Libraries read their settings before main, so the program starts itself anew where the environment leaves
/// them unset; where that fails it runs on, slower. Idle threads of libgomp spin for milliseconds: where
/// there is no core to spare (small machines, where other threads decode images) that costs more than half of
/// the throughput. On larger ones they spin for about half a millisecond, since what lies between two ops is
/// shorter than waking 15 threads. OpenBLAS does not know younger CPUs: better_blas_kernels().
static void restart_with_settings(char** argv) {
  const bool spins = !std::getenv("OMP_WAIT_POLICY") && !std::getenv("GOMP_SPINCOUNT");
  const std::string kernels = std::getenv("OPENBLAS_CORETYPE") ? "" : better_blas_kernels(blas_kernels());
  if (!spins && kernels.empty()) return;
  if (spins) setenv("GOMP_SPINCOUNT", std::thread::hardware_concurrency() < 8 ? "1000" : "10000", 1);
  if (!kernels.empty()) setenv("OPENBLAS_CORETYPE", kernels.c_str(), 1);
  std::error_code unknown;
  execv(std::filesystem::read_symlink("/proc/self/exe", unknown).c_str(), argv);
}

/// A step frees and takes the same large blocks again and again. Left alone, malloc returns them to the
/// system each time, and the next use pays for every page anew. A program may choose that for all of its
/// memory, a library may not.
static void keep_large_blocks() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

int run_app(int argc, char** argv, const AppInfo& info, const Steps& steps) {
  restart_with_settings(argv);
  keep_large_blocks();
  install_signals();
  int code = 1;
  std::string message;
  try {
    return run_or_throw({argv, argv + argc}, info, steps);
  } catch (const Error& e) {
    code = e.exit_code();
    message = e.what();
  } catch (const std::bad_alloc&) {
    code = 4;
    message = "out of memory; use a smaller batch";
  } catch (const std::exception& e) {
    message = e.what();
  }
  tell("{}: error: {}\n", info.name, message);
  return code;
}

}  // namespace app_detail
}  // namespace occam
