#include "nn/mixers/mixer.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/config.h"
#include "ops/clear_unused/op.h"
#include "ops/elementwise/op.h"
#include "ops/ragged.h"

namespace occam {

MixerShape at_tokens(MixerShape shape, int64_t tokens) {
  if (shape.has_grid() && tokens == shape.tokens()) return shape;
  const int64_t patches = std::max<int64_t>(tokens - shape.prefix, 0);
  const int64_t side = std::llround(std::sqrt(double(patches)));
  shape.grid_h = shape.grid_w = side * side == patches ? side : 0;
  return shape;
}

Tensor TokenMixer::heads(const Tensor& x) {
  Scope scope(path());
  return mix(x);
}

Linear& TokenMixer::projection() {
  Linear* out = proj();
  OCCAM_CHECK(out != nullptr, ErrorKind::internal, "{}: a mixer without an output projection has no forward",
              kind());
  return *out;
}

Tensor TokenMixer::add_to(const Tensor& x, LayerNorm& norm) {
  if (proj() == nullptr) return add(x, (*this)(norm(x)));
  Scope scope(name());
  return proj()->fused(mix_normalised(x, norm), nullptr, x);
}

Tensor TokenMixer::forward(const Tensor& x) { return projection()(mix(x)); }

Tensor TokenMixer::mix(const Tensor&, const Sequences&) {
  fail(ErrorKind::internal, fmt::format("{}: no ragged form", kind()));
}

Ragged TokenMixer::heads(const Ragged& x) {
  Scope scope(path());
  return run_ragged(x, false);
}

Ragged TokenMixer::operator()(const Ragged& x) {
  Ragged y;
  run(x.data, [&] { return (y = run_ragged(x, true)).data; });
  return y;
}

Ragged TokenMixer::run_ragged(const Ragged& x, bool with_projection) {
  OCCAM_CHECK(takes_ragged(), ErrorKind::usage, "mixer {} takes no ragged input: {}", kind(),
              why_not_ragged());
  check_structure(x);
  const Sequences rows = x.sequences();
  // Layers run over all rows. Cleared before and after, those without a sequence add nothing to gradients.
  Tensor y = mix(as_image(clear_unused(x.data, rows), rows), rows);
  if (with_projection) y = projection()(y);
  Ragged result = x;
  result.data = clear_unused(as_rows(y, rows), rows);
  return result;
}

const MixerEntry& find_mixer(std::string_view name) {
  std::vector<std::string> names;
  for (const MixerEntry& entry : mixer_table()) {
    if (name == entry.name) return entry;
    names.push_back(entry.name);
  }
  fail(ErrorKind::usage, fmt::format("no mixer is named \"{}\"; {}", name, name_hint(name, names)));
}

SizedOptions size_options(std::string_view name, const MixerShape& shape, MixerOptions options,
                          int64_t tokens) {
  const auto match = options.find("match");
  if (match == options.end()) return {options, ""};
  const MixerEntry& entry = find_mixer(name);
  const MixerKnob& knob = entry.knob;
  const bool params = match->second == "params";
  OCCAM_CHECK(params || match->second == "macs", ErrorKind::usage,
              "options of mixer {}: match is \"{}\", expected params or macs", name, match->second);
  OCCAM_CHECK(knob.option != nullptr, ErrorKind::usage, "mixer {} has nothing that a match could size", name);
  OCCAM_CHECK(!options.contains(knob.option), ErrorKind::usage, "options of mixer {}: either {} or match",
              name, knob.option);
  if (tokens == 0) tokens = shape.tokens();
  OCCAM_CHECK(params || tokens > 0, ErrorKind::usage, "mixer {}: match: macs needs a number of tokens", name);
  const MixerShape at = at_tokens(shape, tokens);
  const std::string matched = match->second;
  options.erase(match);
  auto cost = [&](const MixerEntry& of, const MixerOptions& o) {
    const MixerLedger ledger = of.ledger(at, tokens, o);
    return params ? ledger.params : ledger.macs;
  };
  auto with = [&](int64_t n) {
    options[knob.option] = std::to_string(knob.first + n * knob.step);
    return cost(entry, options);
  };
  const int64_t limit = cost(find_mixer("attention"), {});
  if (const int64_t least = with(0); least > limit)
    return {{},
            fmt::format("mixer {} with {} = {} has {} {} already; attention has {}", name, knob.option,
                        knob.first, least, matched, limit)};
  const int64_t end = (knob.last - knob.first) / knob.step + 1;
  int64_t low = 0, high = 1;  // with(low) fits; with(high) does not, or high is the end
  while (high < end && with(high) <= limit) low = high, high = std::min(2 * high, end);
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (with(middle) <= limit ? low : high) = middle;
  }
  with(low);
  return {options, ""};
}

MixerOptions sized_options(std::string_view name, const MixerShape& shape, MixerOptions options,
                           int64_t tokens) {
  SizedOptions sized = size_options(name, shape, std::move(options), tokens);
  OCCAM_CHECK(sized.refusal.empty(), ErrorKind::usage, "{}", sized.refusal);
  return sized.options;
}

std::unique_ptr<TokenMixer> make_mixer(std::string_view name, const MixerShape& shape,
                                       const MixerOptions& options) {
  OCCAM_CHECK(shape.heads > 0 && shape.dim > 0 && shape.dim % shape.heads == 0, ErrorKind::usage,
              "{} channels cannot be split into {} heads", shape.dim, shape.heads);
  return find_mixer(name).make(shape, sized_options(name, shape, options));
}

}  // namespace occam
