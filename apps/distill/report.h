#pragma once
// What a distillation's summary looks like to people.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "core/io/json.h"
#include "core/report/table.h"
#include "nn/distill/plan.h"

namespace occam {

struct DistillReport {
  std::string teacher;  // model name
  LayerRanking ranking;
  Json summary;  // as summary.json
  Json curves;   // <run>.<stage1|stage2>.{step,loss}
};

/// One line a run, the teacher first.
Table result_table(const Json& summary);
void write_report(const DistillReport& report, const std::filesystem::path& path);

}  // namespace occam
