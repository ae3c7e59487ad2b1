#pragma once
// TokenMixer: what a transformer block does between tokens. Softmax attention is one; everything that is put
// in its place is another. Names of parameters stay under `blocks.<i>.attn.`.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nn/layers/linear.h"
#include "nn/module.h"

namespace occam {

struct MixerShape {
  int64_t dim = 0;    // channels c
  int64_t heads = 0;  // h; head width c / h
  // How the tokens lie in the image: `prefix` tokens without a place (class, distillation), then the patches
  // row by row. 0: unknown, and what needs it refuses the shape.
  int64_t grid_h = 0, grid_w = 0;
  int64_t prefix = 0;
  int64_t head_dim() const { return dim / heads; }
  bool has_grid() const { return grid_h > 0 && grid_w > 0; }
  int64_t tokens() const { return prefix + grid_h * grid_w; }
};

/// A mixer's own settings as text, checked by the mixer that reads them.
using MixerOptions = std::map<std::string, std::string>;

/// Closed forms of a mixer's cost (method.md 1.4), checked against its parameters and plan in a test.
struct MixerLedger {
  int64_t params = 0;
  int64_t macs = 0;              // one image of t tokens
  int64_t sequential_depth = 0;  // longest chain of steps that must follow one another
};

class TokenMixer : public Module {
 public:
  explicit TokenMixer(const MixerShape& shape) : shape_(shape) {}

  /// Concatenated head outputs [b, t, c] before the output projection: what distillation matches. Throws
  /// Error{internal} for a mixer without a tap.
  Tensor heads(const Tensor& x);
  /// The output projection c -> c, which a replacement takes over from the mixer before it; null when there
  /// is none.
  virtual Linear* proj() { return nullptr; }
  /// Does heads() exist?
  virtual bool has_tap() const { return true; }
  /// False when the block has no mixing branch at all: no norm before the mixer, nothing added.
  virtual bool has_branch() const { return true; }
  /// Is the output a matrix of weights (by head and image) times values?
  virtual bool has_mixing_matrix() const { return false; }
  /// Does it take images of different numbers of tokens in one batch without padding?
  virtual bool takes_ragged() const { return false; }
  const MixerShape& mixer_shape() const { return shape_; }

 protected:
  /// The tap. x [b, t, c] is normalised.
  virtual Tensor mix(const Tensor& x) = 0;
  Tensor forward(const Tensor& x) override;

 private:
  MixerShape shape_;
};

/// The option that sizes a mixer: `first`, first + step, ... up to `last` are values that its kernels like.
/// Parameters and multiply-adds grow with it.
struct MixerKnob {
  const char* option = nullptr;  // null: nothing sizes it
  int64_t first = 1, step = 1, last = 1 << 20;
};

/// One kind of mixer: nn/mixers/<folder>/mixer.cpp ends with OCCAM_REGISTER_MIXER(<folder>, {...}).
struct MixerEntry {
  const char* name;
  const char* about;  // one line for help
  /// Throws Error{usage} for an option it does not know or a value out of range.
  std::unique_ptr<TokenMixer> (*make)(const MixerShape&, const MixerOptions&);
  MixerLedger (*ledger)(const MixerShape&, int64_t tokens, const MixerOptions&);
  MixerKnob knob = {};
};

/// Every mixer, in folder order.
const std::vector<MixerEntry>& mixer_table();
/// Throws Error{usage} listing the known names.
const MixerEntry& find_mixer(std::string_view name);
/// Options of any mixer with a knob may say `match: params` or `match: macs` in the knob's place: these are
/// the options with the largest value of the knob that costs no more than softmax attention of the same
/// shape (macs: for `tokens` tokens, by default the shape's). Others are returned as they are. Throws
/// Error{usage} when there is no knob, when it is set too, and when its first value costs more already.
MixerOptions sized_options(std::string_view name, const MixerShape& shape, MixerOptions options,
                           int64_t tokens = 0);
/// `options` as in sized_options().
std::unique_ptr<TokenMixer> make_mixer(std::string_view name, const MixerShape& shape,
                                       const MixerOptions& options = {});

#define OCCAM_REGISTER_MIXER(folder, ...)                                                                   \
  void register_mixer_##folder(std::vector<MixerEntry>& table) { table.push_back(MixerEntry __VA_ARGS__); } \
  static_assert(true)

}  // namespace occam
