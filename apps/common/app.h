#pragma once
// The frame of an app. A main is:
//
//   struct TrainConfig : CommonConfig { ...; template <class V> void visit(V& v) { CommonConfig::visit(v);
//   ... } }; int main(int argc, char** argv) {
//     return run_app<TrainConfig>(argc, argv, {.name = "train", ...}, [](App& app, TrainConfig& config) {
//       ...open and check all input...
//       RunFolder& run = app.start_run(config);  // --check ends here
//       ...work, polling stop_requested()...
//       app.finish(summary);
//     });
//   }
#include <functional>
#include <memory>
#include <string>

#include "apps/common/command_line.h"
#include "apps/common/run_folder.h"
#include "core/config_visit.h"
#include "core/device.h"

namespace occam {

/// Settings of every app. Derive from it; call its visit first.
struct CommonConfig {
  struct Out {
    std::string dir;
    bool overwrite = false;
    template <class V>
    void visit(V& v) {
      v("dir", dir, "folder of this run; empty: runs/<app>-<time>");
      v("overwrite", overwrite, "replace the run that is there, once the new one is finished");
    }
  };
  std::string precision = "auto";
  int64_t threads = 0;
  Out out;

  template <class V>
  void visit(V& v) {
    v("precision", precision, "auto: bf16 on a GPU, f32 on a CPU", Choices{"auto", "f32", "tf32", "bf16"});
    v("threads", threads, "CPU threads; 0: OMP_NUM_THREADS, or one a core", Range{0, 4096});
    v("out", out, "where results go");
  }
};

/// True after SIGINT or SIGTERM: save, then return from the app's function. A second signal ends the process
/// at once.
bool stop_requested();

class App {
 public:
  const AppInfo& info() const { return info_; }
  const Arguments& arguments() const { return arguments_; }
  const std::string& verb() const { return arguments_.verb; }
  bool json() const { return arguments_.json; }
  Device device() const { return device_; }

  /// Everything from outside has been read and found right: with --check the app ends here, with success.
  void checked() const;
  /// Calls checked(), opens the run folder, and writes config.resolved.yaml (so set what was resolved before)
  /// and env.json. Resuming within one run with other settings throws Error{usage} that names them; a new run
  /// from another's checkpoint may differ, and says on the standard error in what.
  template <class Config>
  RunFolder& start_run(const Config& config) {
    return start_run(config.out, describe_config(config));
  }
  RunFolder& run() const { return *run_; }
  /// A result for the terminal, on the standard output; nothing with --json.
  void print(const std::string& text) const;
  /// With --json: a line on the standard output at once, for a result that is a list. finish() then prints
  /// none.
  void line(const Json& row);
  /// The result: into summary.json when there is a run folder, to the standard output with --json.
  void finish(const Json& summary);

  /// For `run_app`.
  App(const AppInfo& info, Arguments arguments, const std::vector<std::string>& command_line);
  void set_up(CommonConfig& config);
  void close() const;

 private:
  RunFolder& start_run(const CommonConfig::Out& out, const ConfigNode& resolved);
  void compare_with_earlier_part(const ConfigNode& resolved) const;

  const AppInfo& info_;
  Arguments arguments_;
  std::vector<std::string> command_line_;
  Device device_;
  std::unique_ptr<RunFolder> run_;
  bool finished_ = false, printed_lines_ = false;
};

/// "auto", "cpu", "cuda" or "cuda:N". Throws Error{usage} when there is no such device.
Device device_from(const std::string& name);

namespace app_detail {
/// Config-independent frame of run_app: everything but the config's own type.
struct Steps {
  std::function<ConfigNode()> defaults;         // describes a default config
  std::function<void(const ConfigNode&)> read;  // into the config
  std::function<ConfigNode()> describe;         // the config as read
  std::function<void(App&)> run;                // set_up and the app's function
};
int run_app(int argc, char** argv, const AppInfo& info, const Steps& steps);
}  // namespace app_detail

/// Parses the command line, reads the config, picks device, precision and threads, and calls fn(App&,
/// Config&). Returns the exit code: 0, or Error::exit_code() with one message on the standard error.
template <class Config, class Fn>
int run_app(int argc, char** argv, const AppInfo& info, Fn fn) {
  Config config;
  return app_detail::run_app(argc, argv, info,
                             {.defaults = [] { return describe_config(Config{}); },
                              .read = [&](const ConfigNode& node) { read_config(node, config); },
                              .describe = [&] { return describe_config(config); },
                              .run =
                                  [&](App& app) {
                                    app.set_up(config);
                                    fn(app, config);
                                  }});
}

}  // namespace occam
