#pragma once
// A student of the original implementation as a model of Occam.
#include "apps/common/app.h"
#include "nn/vit/model.h"

namespace occam {

struct ConvertConfig {
  std::string file, to;
  std::map<std::string, std::string> rename;

  template <class V>
  void visit(V& v) {
    v("file", file, "safetensors file of a student with wide masked LSTMs");
    v("to", to, "file to write");
    v("rename", rename,
      "names of parts in the file and here: {lstm: rnn} turns blocks.0.attn.lstm into ...rnn");
  }
};

/// Fills a model, which has bilstm in the blocks that have it in the file, and writes it to config.to; over
/// another file only with out.overwrite.
void convert_wide_lstm(App& app, const ModelConfig& model, const ConvertConfig& config,
                       const CommonConfig::Out& out);

}  // namespace occam
