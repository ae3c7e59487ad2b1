#include "apps/bench/mixer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/bench/model.h"
#include "apps/common/app.h"
#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/allocator.h"
#include "core/check.h"
#include "core/grad_mode.h"
#include "core/replay.h"
#include "core/report/svg.h"
#include "core/stream.h"
#include "nn/vit/block.h"

namespace occam {
namespace {

int64_t side_of(int64_t tokens) { return int64_t(std::llround(std::sqrt(double(tokens - 1)))); }

MixerShape shape_of(const MixerSweep& s, int64_t tokens) {
  return at_tokens({.dim = s.dim, .heads = s.heads, .prefix = 1}, tokens);
}

/// Multiply-adds of a block with this mixer, for one image.
double block_macs(const MixerSweep& s, const MixerEntry& mixer, int64_t tokens) {
  return double(mixer.ledger(shape_of(s, tokens), tokens, {}).macs) +
         2.0 * double(tokens) * double(s.dim) * double(s.mlp_hidden);
}

double seconds_of(Device device, const std::function<void()>& step) {
  synchronize(device);
  const auto start = std::chrono::steady_clock::now();
  step();
  synchronize(device);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// (tokens, ms) of the cells that were timed, in order of their lengths.
std::vector<std::pair<int64_t, double>> timed(const MixerSweep& s, const std::vector<Json>& lines,
                                              const std::string& mixer, int64_t batch) {
  std::vector<std::pair<int64_t, double>> cells;
  for (const Json& line : lines)
    if (line.at("mixer") == mixer && line.at("B") == batch && line.at("pass") == s.pass() &&
        line.contains("ms"))
      cells.emplace_back(line.at("tokens").get<int64_t>(), line.at("ms").get<double>());
  std::sort(cells.begin(), cells.end());
  return cells;
}

/// The cell's times, or why there are none; step_s: seconds of a step.
Json time_cell(const MixerSweep& s, const std::string& mixer, int64_t tokens, int64_t batch) {
  Block block(make_mixer(mixer, shape_of(s, tokens)), {.mlp_hidden = s.mlp_hidden});
  initialize(block, 0);
  block.to(s.device);
  block.set_compute_dtype(s.dtype);
  block.train(s.backward);
  Allocator& memory = allocator_for(s.device);
  memory.reset_peak();
  const Tensor x = random_values({batch, tokens, s.dim}, {s.dtype, s.device});
  Replay replay(s.device);
  std::function<void()> pass;
  Tensor gy;
  if (s.backward) {
    set_requires_grad(x, true);
    gy = random_values(x.shape(), options_of(x));
    pass = [&] { backward(block(x), gy); };
  } else {
    pass = [&] {
      NoGrad no_grad;
      block(x);
    };
  }
  const auto step = [&] { replay.run(pass); };
  step();
  const double once = seconds_of(s.device, step);
  if (once * double(least_steps(s.timing.samples)) > 2 * s.cell_s)
    return {{"skipped", fmt::format("a step takes {:.2f} s", once)}, {"step_s", once}};
  const Timing t = measure(s.device, step, s.timing);
  Json line = json_of(t);
  line.update({{"img_s", 1e3 * double(batch) / t.ms},
               {"peak_gb", peak_gb(s.device)},
               {"mode", replay.captured() ? "captured" : "plain"},
               {"step_s", t.ms / 1e3}});
  if (!replay.fallback().empty()) line["not_captured_because"] = replay.fallback();
  return line;
}

}  // namespace

void check_sweep(const MixerSweep& s) {
  for (const std::string& name : s.mixers) find_mixer(name);
  for (int64_t t : s.tokens)
    OCCAM_CHECK(
        t > 1 && side_of(t) * side_of(t) + 1 == t, ErrorKind::usage,
        "bench.tokens={}: one class token and a square of patches are meant, such as 65, 197, 577 or {}", t,
        side_of(t) * side_of(t) + 1);
}

void run_mixer_cells(const MixerSweep& s, const std::string& mixer, int64_t batch,
                     const std::function<void(const Json&)>& keep) {
  const MixerEntry& entry = find_mixer(mixer);
  double predicted_s = 0;
  for (size_t i = 0; i < s.tokens.size() && !stop_requested(); ++i) {
    const int64_t t = s.tokens[i];
    if (i > 0) predicted_s *= block_macs(s, entry, t) / block_macs(s, entry, s.tokens[i - 1]);
    const MixerLedger ledger = entry.ledger(shape_of(s, t), t, {});
    Json line = {{"who", "occam"},
                 {"what", "mixer"},
                 {"mixer", mixer},
                 {"tokens", t},
                 {"B", batch},
                 {"pass", s.pass()},
                 {"precision", name_of(s.dtype)},
                 {"dim", s.dim},
                 {"heads", s.heads},
                 {"params", ledger.params},
                 {"macs", ledger.macs},
                 {"depth", ledger.sequential_depth},
                 {"device", s.device.is_cuda() ? device_name() : "cpu"}};
    if (predicted_s * double(least_steps(s.timing.samples)) > s.cell_s) {
      line["skipped"] = fmt::format("a step is predicted to take {:.2f} s", predicted_s);
    } else {
      try {
        Json timed = time_cell(s, mixer, t, batch);
        predicted_s = timed.at("step_s");
        timed.erase("step_s");
        line.update(timed);
      } catch (const Error& e) {
        if (e.kind() != ErrorKind::memory) throw;
        line["skipped"] = "does not fit into memory";
      }
    }
    keep(line);
  }
}

std::optional<double> crossover(const MixerSweep& s, const std::vector<Json>& lines, const std::string& mixer,
                                int64_t batch) {
  const auto attention = timed(s, lines, "attention", batch);
  std::vector<std::pair<double, double>> ratio;  // log tokens, log(mixer / attention)
  for (const auto& [tokens, ms] : timed(s, lines, mixer, batch))
    for (const auto& [same, attention_ms] : attention)
      if (same == tokens) ratio.emplace_back(std::log(double(tokens)), std::log(ms / attention_ms));
  if (ratio.empty() || ratio.back().second >= 0) return {};
  for (size_t i = ratio.size() - 1; i > 0; --i) {
    const auto [x0, r0] = ratio[i - 1];
    const auto [x1, r1] = ratio[i];
    if (r0 >= 0) return std::exp(x0 + (x1 - x0) * r0 / (r0 - r1));
  }
  return 0;
}

Table crossover_table(const MixerSweep& s, const std::vector<Json>& lines) {
  Table table;
  table.caption = "Tokens from which on a block with the mixer is faster than one with attention";
  table.columns = {"mixer"};
  for (int64_t b : s.batches) table.columns.push_back(fmt::format("batch {}", b));
  for (const std::string& mixer : s.mixers) {
    if (mixer == "attention") continue;
    std::vector<Cell> row{mixer};
    for (int64_t b : s.batches) {
      const auto at = crossover(s, lines, mixer, b);
      const bool both = !timed(s, lines, mixer, b).empty() && !timed(s, lines, "attention", b).empty();
      row.emplace_back(!both      ? std::string("not measured")
                       : !at      ? std::string("not measured faster")
                       : *at == 0 ? "always"
                                  : fmt::format("{:.0f}", *at));
    }
    table.add(std::move(row));
  }
  return table;
}

void mixer_report(HtmlReport& report, const MixerSweep& s, const std::vector<Json>& lines) {
  report.section(s.backward ? "Forward and backward" : "Forward");
  report.paragraph(fmt::format(
      "A transformer block of {} channels and {} heads, {}, in {}: norms, mixer, MLP and residuals. "
      "identity has no mixer at all: no mixer can be faster.",
      s.dim, s.heads, s.pass(), name_of(s.dtype)));
  report.table(crossover_table(s, lines));
  for (int64_t b : s.batches) {
    ChartOptions options;
    options.title = fmt::format("Batch {}", b);
    options.description =
        "Milliseconds of a block over the number of tokens, both logarithmic, a line a mixer.";
    options.x = {.label = "tokens", .log = true};
    options.y = {.label = "ms", .log = true};
    std::vector<Series> all;
    for (const std::string& mixer : s.mixers) {
      Series series{.name = mixer};
      for (const auto& [tokens, ms] : timed(s, lines, mixer, b)) {
        series.x.push_back(double(tokens));
        series.y.push_back(ms);
      }
      if (!series.x.empty()) all.push_back(std::move(series));
    }
    if (!all.empty()) report.figure(line_chart(options, all), options.title);
  }
  std::vector<std::string> skipped;
  for (const Json& line : lines)
    if (line.contains("skipped") && line.at("pass") == s.pass())
      skipped.push_back(fmt::format("{}, {} tokens, batch {}: {}", line.at("mixer").get<std::string>(),
                                    line.at("tokens").get<int64_t>(), line.at("B").get<int64_t>(),
                                    line.at("skipped").get<std::string>()));
  if (skipped.empty()) return;
  report.section("Left out", 3);
  report.list(skipped);
}

}  // namespace occam
