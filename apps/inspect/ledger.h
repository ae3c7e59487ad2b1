#pragma once
// What mixers cost: closed forms for one block, counts for a whole model.
#include <optional>

#include "core/config.h"
#include "core/io/json.h"
#include "core/report/table.h"
#include "nn/vit/vit.h"

namespace occam {

struct LedgerConfig {
  std::vector<int64_t> tokens;
  std::vector<std::string> mixers;
  MixerOptions options;
  std::string match = "none";

  template <class V>
  void visit(V& v) {
    v("tokens", tokens, "numbers of tokens, class token included; none: the model's", Range{1, 1 << 24});
    v("mixers", mixers, "which mixers; none: all");
    v("options", options, "settings for all of these mixers");
    v("match", match, "size each mixer that can be sized to the attention it replaces",
      Choices{"none", "params", "macs"});
  }
};

/// One mixer at one length. The model has it in every block; only at the model's own length.
struct LedgerRow {
  int64_t tokens = 0;
  std::string mixer;
  MixerOptions options;
  MixerLedger block;
  MixerLedger attention;  // what it is compared with
  std::optional<int64_t> model_params, model_macs;
  std::string refusal;  // why the mixer has no such length or size; the costs are then unset
};

/// Throws Error{usage} for unknown mixers and options.
std::vector<LedgerRow> ledger_of(const VitShape& shape, const LedgerConfig& config = {});
Table ledger_table(const std::vector<LedgerRow>& rows);
/// A line for each row with a refusal, which the table leaves out.
std::vector<std::string> refusals(const std::vector<LedgerRow>& rows);
Json ledger_json(const std::vector<LedgerRow>& rows);

}  // namespace occam
