#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "core/io/atomic_file.h"
#include "core/io/json.h"
#include "core/profiler.h"
#include "core/scope.h"

namespace occam {

namespace {

/// Below what events resolve, a rate would be noise: calls that launch nothing, views say.
double rate(double amount, double seconds, double calls) {
  constexpr double kResolved = 0.5e-6;
  return amount > 0 && seconds > kResolved * calls ? amount / seconds : std::nan("");
}

Cell share_of(double rate, double ceiling) {
  return Cell::percent(ceiling > 0 ? rate / ceiling : std::nan(""), 0);
}

}  // namespace

std::vector<Profiler::Row> Profiler::rows(By by) const {
  std::map<std::tuple<std::string, std::string, Phase>, Row> found;
  Row other{"other", ""};
  for (const Step& step : steps_) {
    other.seconds += step.seconds, other.host_seconds += step.host_seconds;
    for (const Span& s : step.spans) {
      std::string place = by == By::op ? "" : by == By::place ? place_of(s.path) : s.path;
      Row& row = found[{s.name, place, s.phase}];
      row.name = s.name, row.place = place, row.phase = s.phase;
      ++row.calls;
      row.seconds += s.self, row.host_seconds += s.host_self;
      row.work.flops += s.work.flops, row.work.bytes += s.work.bytes;
      other.seconds -= s.self, other.host_seconds -= s.host_self;
    }
  }
  std::vector<Row> rows;
  for (auto& [key, row] : found) rows.push_back(std::move(row));
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return a.seconds > b.seconds; });
  rows.push_back(other);
  const double n = double(std::max<size_t>(steps_.size(), 1));
  for (Row& r : rows) r.calls /= n, r.seconds /= n, r.host_seconds /= n, r.work.flops /= n, r.work.bytes /= n;
  return rows;
}

Table Profiler::table(By by, const Ceilings& ceilings) const {
  Table table{.columns = {"op", "phase", "calls", "ms", "share", "GFLOP", "MB", "TFLOP/s", "GB/s",
                          "of matmul", "of copy", "floor ms", "host ms"}};
  const bool placed = by != By::op;
  if (placed) table.columns.insert(table.columns.begin() + 2, "where");
  const double total = totals().device_s;
  auto add = [&](const Row& r, bool sum) {
    const double flops = rate(r.work.flops, r.seconds, r.calls),
                 bytes = rate(r.work.bytes, r.seconds, r.calls);
    const bool known = ceilings.flops > 0 && ceilings.bytes > 0;
    const double floor = std::max(r.work.flops / ceilings.flops, r.work.bytes / ceilings.bytes);
    std::vector<Cell> cells{r.name,
                            sum || r.name == "other" ? "" : name_of(r.phase),
                            std::abs(r.calls - std::round(r.calls)) < 1e-6
                                ? Cell(int64_t(std::llround(r.calls)))
                                : Cell(r.calls, 1),
                            Cell(1e3 * r.seconds, 3),
                            Cell::percent(total > 0 ? r.seconds / total : 0),
                            Cell(r.work.flops / 1e9, 2),
                            Cell(r.work.bytes / 1e6, 1),
                            Cell(flops / 1e12, 1),
                            Cell(bytes / 1e9, 0),
                            share_of(flops, ceilings.flops),
                            share_of(bytes, ceilings.bytes),
                            sum || !known ? Cell::missing() : Cell(1e3 * floor, 3),
                            Cell(1e3 * r.host_seconds, 3)};
    if (placed) cells.insert(cells.begin() + 2, Cell(r.place));
    table.add(std::move(cells));
  };
  Row sum{"step", ""};
  for (const Row& r : rows(by)) {
    add(r, false);
    sum.calls += r.calls, sum.seconds += r.seconds, sum.host_seconds += r.host_seconds;
    sum.work.flops += r.work.flops, sum.work.bytes += r.work.bytes;
  }
  add(sum, true);
  table.highlighted = int(table.rows.size()) - 1;
  return table;
}

std::string Profiler::summary() const {
  const Totals t = totals();
  return fmt::format(
      "step {:.3f} ms: device busy {:.3f} ms, queued by the host in {:.3f} ms, device idle {:.0f} % of the "
      "step "
      "({} steps recorded, {} timed without spans)",
      1e3 * t.wall_s, 1e3 * t.device_s, 1e3 * t.host_s, 100 * t.idle(), steps_.size(), timed_.size());
}

std::string Profiler::markdown(const Ceilings& c) const {
  std::string text = "# Profile\n\n" + summary() + ".\n\n";
  if (c.flops > 0 && c.bytes > 0)
    text += fmt::format("Measured ceilings: matrix products {:.3g} TFLOP/s, copies {:.4g} GB/s.\n\n",
                        c.flops / 1e12, c.bytes / 1e9);
  text +=
      "Times are the device's, a step. FLOPs and bytes are the least the mathematics needs (a backward pass: "
      "the "
      "gradients it is given, what was saved and the gradients it makes), so low rates tell of extra traffic "
      "as well "
      "as of slow kernels. `floor` is what the ceilings allow. `other` is the time outside all spans.\n\n## "
      "By op\n\n";
  text += to_markdown(table(By::op, c)) + "\n## By place\n\n" + to_markdown(table(By::place, c));
  return text;
}

void Profiler::write_trace(const std::filesystem::path& file) const {
  constexpr int kDeviceTrack = 1, kHostTrack = 2;
  Json events = Json::array();
  for (auto [track, name] : {std::pair{kDeviceTrack, device_.str()}, {kHostTrack, std::string("host")}})
    events.push_back(
        {{"ph", "M"}, {"name", "thread_name"}, {"pid", 1}, {"tid", track}, {"args", {{"name", name}}}});
  double offset = 0;  // steps one after the other
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    for (const Span& s : step.spans) {
      Json event = {
          {"ph", "X"},
          {"name", s.path.empty() ? std::string(s.name) : s.path + " " + s.name},
          {"cat", name_of(s.phase)},
          {"pid", 1},
          {"tid", kDeviceTrack},
          {"ts", 1e6 * (offset + s.start)},
          {"dur", 1e6 * s.seconds},
          {"args", {{"op", s.name}, {"step", i}, {"flops", s.work.flops}, {"bytes", s.work.bytes}}}};
      events.push_back(event);
      event["tid"] = kHostTrack, event["ts"] = 1e6 * (offset + s.host_start),
      event["dur"] = 1e6 * s.host_seconds;
      events.push_back(std::move(event));
    }
    offset += 1.05 * std::max(step.seconds, step.host_seconds);
  }
  write_file_atomic(file,
                    dump_json_line({{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}}) + "\n");
}

}  // namespace occam
