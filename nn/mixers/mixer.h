#pragma once
// TokenMixer: what a transformer block does between tokens. Softmax attention is one; everything that is put
// in its place is another. Names of parameters stay under `blocks.<i>.attn.`.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/ragged.h"
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

/// The shape of the same model on images of `tokens` tokens: a square grid where these are the prefix and a
/// square, else without a grid. A shape of as many tokens is returned as it is.
MixerShape at_tokens(MixerShape shape, int64_t tokens);

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
  using Module::operator();
  /// Sequences of different lengths without padding, each as if it were alone; zeros in the rows of none,
  /// whatever x and the result's gradient hold there. Throws Error{usage} where takes_ragged() is false.
  Ragged operator()(const Ragged& x);
  Ragged heads(const Ragged& x);
  bool takes_ragged() const { return why_not_ragged().empty(); }
  /// Empty where it does.
  virtual std::string why_not_ragged() const { return "its core is made for whole images"; }
  /// x + (*this)(norm(x)) for inference: the norm in one op with the layer that reads it, where that is one,
  /// the sum with the output projection.
  Tensor add_to(const Tensor& x, LayerNorm& norm);
  /// The output projection c -> c, which a replacement takes over from the mixer before it; null when there
  /// is none.
  virtual Linear* proj() { return nullptr; }
  /// Does heads() exist?
  virtual bool has_tap() const { return true; }
  /// False when the block has no mixing branch at all: no norm before the mixer, nothing added.
  virtual bool has_branch() const { return true; }
  const MixerShape& mixer_shape() const { return shape_; }

 protected:
  /// The tap. x [b, t, c] is normalised.
  virtual Tensor mix(const Tensor& x) = 0;
  /// The tap of norm(x), for who has a linear layer to begin with.
  virtual Tensor mix_normalised(const Tensor& x, LayerNorm& norm) { return mix(norm(x)); }
  /// The tap of x [1, n, c], the rows of all sequences, when takes_ragged().
  virtual Tensor mix(const Tensor& x, const Sequences& rows);
  Tensor forward(const Tensor& x) override;

 private:
  Linear& projection();
  Ragged run_ragged(const Ragged& x, bool with_projection);

  MixerShape shape_;
};

/// The option that sizes a mixer: `first`, first + step, ... up to `last`, the largest that the option takes,
/// are values that its kernels like. Parameters and multiply-adds grow with it.
struct MixerKnob {
  const char* option;  // null: nothing sizes it
  int64_t first, step, last;
};

/// One kind of mixer, made by OCCAM_REGISTER_MIXER (nn/mixers/options.h).
struct MixerEntry {
  const char* name;   // its folder's
  const char* about;  // one line for help
  /// Both throw Error{usage} for an option it does not know, a value out of range and a grid that is missing.
  std::unique_ptr<TokenMixer> (*make)(const MixerShape&, const MixerOptions&);
  MixerLedger (*ledger)(const MixerShape&, int64_t tokens, const MixerOptions&);
  MixerKnob knob;
  bool needs_grid;
};

/// Every mixer, in folder order.
const std::vector<MixerEntry>& mixer_table();
/// Throws Error{usage} listing the known names.
const MixerEntry& find_mixer(std::string_view name);
/// Options, or why no value of the knob is small enough.
struct SizedOptions {
  MixerOptions options;
  std::string refusal;  // empty: they fit
};
/// Options of any mixer with a knob may say `match: params` or `match: macs` in the knob's place: these are
/// the options with the largest step of the knob that costs no more than softmax attention of the same
/// shape (macs: for `tokens` tokens, by default the shape's). Others are returned as they are. Throws
/// Error{usage} when there is no knob, when it is set too, and for what the mixer itself refuses.
SizedOptions size_options(std::string_view name, const MixerShape& shape, MixerOptions options,
                          int64_t tokens = 0);
/// The same where a refusal is an Error{usage} too.
MixerOptions sized_options(std::string_view name, const MixerShape& shape, MixerOptions options,
                           int64_t tokens = 0);
/// `options` as in sized_options().
std::unique_ptr<TokenMixer> make_mixer(std::string_view name, const MixerShape& shape,
                                       const MixerOptions& options = {});

}  // namespace occam
