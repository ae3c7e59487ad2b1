#pragma once
// For mixers' sources: options as text into a struct that describes itself (core/config.h).
#include "core/config_visit.h"
#include "nn/mixers/mixer.h"

namespace occam {

/// Throws Error{usage} naming the mixer for an unknown option, a wrong type or a value out of range.
template <class Options>
Options read_options(const char* mixer, const MixerOptions& given) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::map;
  for (const auto& [key, text] : given) {
    ConfigNode item;
    item.kind = ConfigNode::Kind::scalar;
    item.key = key;
    item.text = text;
    item.source = std::string("options of mixer ") + mixer;
    node.items.push_back(std::move(item));
  }
  Options options;
  read_config(node, options);
  return options;
}

/// Of a mixer without options.
struct NoOptions {
  template <class V>
  void visit(V&) {}
};

}  // namespace occam
