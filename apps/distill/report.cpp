#include "apps/distill/report.h"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "core/report/html.h"
#include "core/report/svg.h"

namespace occam {

namespace {

std::string blocks_text(const Json& run) {
  std::string text;
  for (int64_t b : run.at("blocks")) text += (text.empty() ? "" : ",") + std::to_string(b);
  return text.empty() ? "-" : text;
}

Cell fraction_cell(const Json& value, int digits = 2) {
  return value.is_null() ? Cell::missing() : Cell::percent(value.get<double>(), digits);
}
Cell number_cell(const Json& value, int digits) {
  return value.is_null() ? Cell::missing() : Cell(value.get<double>(), digits);
}

/// Drop against the sparsity of the blocks, one group a mixer; the no-op is a line.
std::string drop_chart(const DistillReport& r) {
  ChartOptions options{
      .title = "Accuracy lost against sparsity of the replaced blocks",
      .description =
          "Top-1 of the teacher minus that of the run, by the mean of the ranking metric over "
          "its blocks; the line is the control that keeps attention and trains as long."};
  options.x.label = "mean " + r.ranking.key + " of the blocks", options.y.label = "drop in top-1";
  options.y.percent = true;
  std::map<std::string, PointGroup> groups;
  for (const Json& run : r.summary.at("runs")) {
    double drop = run.at("drop");
    std::string with = run.at("with");
    if (with == kNoOp) options.references.push_back({drop, "no_op"});
    if (run.at("mean_sparsity").is_null()) continue;
    groups[with].name = with;
    groups[with].points.push_back({run.at("mean_sparsity"), drop, run.at("asked")});
  }
  std::vector<PointGroup> list;
  for (auto& [name, group] : groups) list.push_back(group);
  return scatter_chart(options, list);
}

std::string match_chart(const DistillReport& r) {
  ChartOptions options{
      .title = "How near are the new modules?",
      .description =
          "Squared distance of the student's head outputs to the teacher's over the teacher's "
          "squared norm, by block, after both stages; each model on its own activations."};
  options.x.label = "block", options.y.label = "relative squared error";
  options.y.from_zero = true;
  std::vector<std::string> blocks;
  for (size_t i = 0; i < r.ranking.values.size(); ++i) blocks.push_back(std::to_string(i));
  std::vector<BarSeries> series;
  for (const Json& run : r.summary.at("runs")) {
    if (run.at("match_errors").empty()) continue;
    BarSeries one{.name = run.at("name"), .values = std::vector<double>(blocks.size(), std::nan(""))};
    for (auto& [block, error] : run.at("match_errors").items())
      one.values.at(std::stoul(block)) = error.is_null() ? std::nan("") : error.get<double>();
    series.push_back(std::move(one));
  }
  return series.empty() ? "" : bar_chart(options, blocks, series);
}

std::string loss_chart(const Json& curves, const std::string& stage, const std::string& title) {
  ChartOptions options{.title = title,
                       .description = "Training loss between log lines, by step, one line a run."};
  options.x.label = "step", options.y.label = "loss";
  std::vector<Series> series;
  for (auto& [run, stages] : curves.items()) {
    if (!stages.contains(stage)) continue;
    series.push_back({.name = run,
                      .x = stages[stage].at("step").get<std::vector<double>>(),
                      .y = stages[stage].at("loss").get<std::vector<double>>()});
  }
  return series.empty() ? "" : line_chart(options, series);
}

}  // namespace

Table result_table(const Json& summary) {
  Table table{.columns = {"mixer", "blocks", "chosen as", "mean " + summary.at("rank_by").get<std::string>(),
                          "top-1 before", "top-1", "drop", "drop vs no-op", "params", "MACs (M)", "steps",
                          "train s", "ms at batch 1", "match error"}};
  const Json& teacher = summary.at("teacher");
  table.add({"teacher", "-", "-", Cell::missing(), Cell::missing(), fraction_cell(teacher.at("top1")),
             Cell::missing(), Cell::missing(), Cell(teacher.at("params").get<int64_t>()),
             Cell(teacher.at("macs").get<double>() / 1e6, 1), Cell::missing(), Cell::missing(),
             number_cell(teacher.at("latency_ms"), 2), Cell::missing()});
  for (const Json& r : summary.at("runs"))
    table.add({r.at("with").get<std::string>(), blocks_text(r), r.at("asked").get<std::string>(),
               number_cell(r.at("mean_sparsity"), 3), fraction_cell(r.at("top1_before")),
               fraction_cell(r.at("top1")), fraction_cell(r.at("drop")), fraction_cell(r.at("drop_vs_no_op")),
               Cell(r.at("params").get<int64_t>()), Cell(r.at("macs").get<double>() / 1e6, 1),
               r.at("steps").get<int64_t>(), number_cell(r.at("train_s"), 1),
               number_cell(r.at("latency_ms"), 2), number_cell(r.at("match_error"), 3)});
  return table;
}

void write_report(const DistillReport& r, const std::filesystem::path& path) {
  HtmlReport report(
      "Attention replaced: " + r.teacher,
      fmt::format("{} training images, judged on {} test images", r.summary.at("images").get<int64_t>(),
                  r.summary.at("test_images").get<int64_t>()));
  report.section("What it cost");
  report.table(result_table(r.summary));
  report.paragraph(
      "Drop: top-1 of the teacher minus that of the run. Drop vs no-op: against the same model with "
      "attention "
      "kept and trained for as many steps. Match error: squared distance of head outputs to the teacher's "
      "over the teacher's squared norm, mean over the replaced blocks.");
  report.figure(drop_chart(r), "Accuracy lost against sparsity.");
  std::string ranking;
  for (int64_t layer : r.ranking.order) ranking += (ranking.empty() ? "" : ", ") + std::to_string(layer);
  report.paragraph("Layers by " + r.ranking.key + ", sparsest first: " + ranking + ".");
  if (std::string chart = match_chart(r); !chart.empty()) {
    report.section("How near the new modules are");
    report.figure(chart, "Match error by block.");
  }
  report.section("Training");
  if (std::string chart = loss_chart(r.curves, "stage1", "Stage 1: the new modules alone"); !chart.empty())
    report.figure(chart, "Loss of stage 1.");
  if (std::string chart = loss_chart(r.curves, "stage2", "Stage 2: all weights"); !chart.empty())
    report.figure(chart, "Loss of stage 2.");
  report.write(path);
}

}  // namespace occam
