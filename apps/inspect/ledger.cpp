#include "apps/inspect/ledger.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/check.h"
#include "nn/plan.h"

namespace occam {

std::vector<LedgerRow> ledger_of(const VitShape& shape, const LedgerConfig& config) {
  std::vector<std::string> names = config.mixers;
  if (names.empty())
    for (const MixerEntry& entry : mixer_table()) names.emplace_back(entry.name);
  const std::vector<int64_t> lengths =
      config.tokens.empty() ? std::vector<int64_t>{shape.tokens()} : config.tokens;
  std::vector<LedgerRow> rows;
  for (int64_t tokens : lengths) {
    const MixerShape at = at_tokens(shape.mixer(), tokens);
    for (const std::string& name : names) {
      const MixerEntry& entry = find_mixer(name);
      LedgerRow row{tokens, name, config.options};
      if (entry.needs_grid && !at.has_grid()) {
        row.refusal = fmt::format("mixer {} needs a patch grid; {} patches make no square one", name,
                                  tokens - at.prefix);
      } else if (config.match != "none" && entry.knob.option != nullptr) {
        row.options["match"] = config.match;
        const SizedOptions sized = size_options(name, at, row.options, tokens);
        row.options = sized.options, row.refusal = sized.refusal;
      }
      if (!row.refusal.empty()) {
        rows.push_back(std::move(row));
        continue;
      }
      row.block = entry.ledger(at, tokens, row.options);
      row.attention = find_mixer("attention").ledger(at, tokens, {});
      if (tokens == shape.tokens()) {
        VisionTransformer model(shape);
        for (int64_t i = 0; i < shape.depth; ++i) model.replace_mixer(i, {name, row.options});
        const Plan plan = plan_of(model, shape.image());
        row.model_params = plan.total().params, row.model_macs = plan.total().macs;
      }
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

Table ledger_table(const std::vector<LedgerRow>& rows) {
  Table table{.columns = {"tokens", "mixer", "parameters", "of attention", "multiply-adds", "of attention",
                          "sequential depth", "model parameters", "model multiply-adds"}};
  auto share = [](int64_t part, int64_t whole) {
    return fmt::format("x{:.2f}", double(part) / double(whole));
  };
  for (const LedgerRow& row : rows) {
    if (!row.refusal.empty()) continue;
    std::string name = row.mixer;
    for (const auto& [key, value] : row.options) name += fmt::format(" {}={}", key, value);
    auto of_model = [](const std::optional<int64_t>& n) { return n ? std::to_string(*n) : std::string("-"); };
    table.add({row.tokens, name, row.block.params, share(row.block.params, row.attention.params),
               row.block.macs, share(row.block.macs, row.attention.macs), row.block.sequential_depth,
               of_model(row.model_params), of_model(row.model_macs)});
  }
  return table;
}

std::vector<std::string> refusals(const std::vector<LedgerRow>& rows) {
  std::vector<std::string> lines;
  for (const LedgerRow& row : rows)
    if (!row.refusal.empty()) lines.push_back(fmt::format("{} tokens: {}", row.tokens, row.refusal));
  return lines;
}

Json ledger_json(const std::vector<LedgerRow>& rows) {
  Json list = Json::array();
  for (const LedgerRow& row : rows) {
    if (!row.refusal.empty()) {
      list.push_back({{"tokens", row.tokens}, {"mixer", row.mixer}, {"refusal", row.refusal}});
      continue;
    }
    list.push_back({{"tokens", row.tokens},
                    {"mixer", row.mixer},
                    {"options", row.options},
                    {"params", row.block.params},
                    {"macs", row.block.macs},
                    {"sequential_depth", row.block.sequential_depth}});
    if (row.model_params) list.back()["model_params"] = *row.model_params;
    if (row.model_macs) list.back()["model_macs"] = *row.model_macs;
  }
  return list;
}

}  // namespace occam
