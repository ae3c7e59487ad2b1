#include "nn/mixers/mixer.h"

#include "core/check.h"
#include "core/config.h"

namespace occam {

Tensor TokenMixer::heads(const Tensor& x) {
  Scope scope(path());
  return mix(x);
}

Tensor TokenMixer::forward(const Tensor& x) {
  Linear* out = proj();
  OCCAM_CHECK(out != nullptr, ErrorKind::internal, "{}: a mixer without an output projection has no forward",
              kind());
  return (*out)(mix(x));
}

const MixerEntry& find_mixer(std::string_view name) {
  std::vector<std::string> names;
  for (const MixerEntry& entry : mixer_table()) {
    if (name == entry.name) return entry;
    names.push_back(entry.name);
  }
  fail(ErrorKind::usage, fmt::format("no mixer is named \"{}\"; {}", name, name_hint(name, names)));
}

std::unique_ptr<TokenMixer> make_mixer(std::string_view name, const MixerShape& shape,
                                       const MixerOptions& options) {
  OCCAM_CHECK(shape.heads > 0 && shape.dim > 0 && shape.dim % shape.heads == 0, ErrorKind::usage,
              "{} channels cannot be split into {} heads", shape.dim, shape.heads);
  return find_mixer(name).make(shape, options);
}

}  // namespace occam
