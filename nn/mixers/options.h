#pragma once
// For mixers' sources: options as text into a struct that describes itself (core/config.h), and registration.
#include "core/check.h"
#include "core/config_visit.h"
#include "nn/mixers/mixer.h"
#include "nn/mixers/scan_order.h"

namespace occam {

/// Throws Error{usage} naming the mixer for an unknown option, a wrong type or a value out of range.
template <class Options>
Options read_options(const char* mixer, const MixerOptions& given) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::map;
  node.source = std::string("options of mixer ") + mixer;
  for (const auto& [key, text] : given) {
    ConfigNode item;
    item.kind = ConfigNode::Kind::scalar;
    item.key = key;
    item.text = text;
    item.source = node.source;
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

/// Of a mixer with a state of each head and direction.
struct HiddenOptions {
  static constexpr MixerKnob knob{"hidden", 8, 8, 65536};
  int64_t hidden = 0;

  template <class V>
  void visit(V& v) {
    v("hidden", hidden, "width of each head's state in each direction; 0 = the head's width",
      Range{0, knob.last});
  }
  int64_t hidden_of(const MixerShape& s) const { return hidden > 0 ? hidden : s.head_dim(); }
};

/// Of a mixer with queries and keys.
struct KeyOptions {
  static constexpr MixerKnob knob{"key", 8, 8, 65536};
  int64_t key = 0;
  ScanOptions scan;

  template <class V>
  void visit(V& v) {
    v("key", key, "width of each head's queries and keys; 0 = the head's width", Range{0, knob.last});
    scan.visit(v);
  }
  int64_t key_of(const MixerShape& s) const { return key > 0 ? key : s.head_dim(); }
};

/// What a mixer's struct M may leave out: Options::knob, the option that sizes it, and M::needs_grid.
template <class M>
constexpr MixerKnob knob_of() {
  if constexpr (requires { M::Options::knob; }) return M::Options::knob;
  return {};
}
template <class M>
constexpr bool needs_grid() {
  if constexpr (requires { M::needs_grid; }) return M::needs_grid;
  return false;
}

/// The checked options of mixer M for a shape.
template <class M, const char* name>
typename M::Options options_for(const MixerShape& s, const MixerOptions& given) {
  OCCAM_CHECK(!needs_grid<M>() || s.has_grid(), ErrorKind::usage, "mixer {} needs a patch grid", name);
  return read_options<typename M::Options>(name, given);
}

/// A mixer is a struct M of Options, `about`, make(shape, options) and ledger(shape, tokens, options).
template <class M, const char* name>
MixerEntry mixer_entry() {
  return {name,
          M::about,
          [](const MixerShape& s, const MixerOptions& o) -> std::unique_ptr<TokenMixer> {
            return M::make(s, options_for<M, name>(s, o));
          },
          [](const MixerShape& s, int64_t t, const MixerOptions& o) -> MixerLedger {
            return M::ledger(s, t, options_for<M, name>(s, o));
          },
          knob_of<M>(),
          needs_grid<M>()};
}

/// The end of nn/mixers/<folder>/mixer.cpp.
#define OCCAM_REGISTER_MIXER(folder, M)                          \
  void register_mixer_##folder(std::vector<MixerEntry>& table) { \
    static constexpr char name[] = #folder;                      \
    table.push_back(mixer_entry<M, name>());                     \
  }                                                              \
  static_assert(true)

}  // namespace occam
