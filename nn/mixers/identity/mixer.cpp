#include "core/check.h"
#include "nn/mixers/options.h"
#include "nn/plan.h"

namespace occam {

namespace {

class Identity : public TokenMixer {
 public:
  using TokenMixer::TokenMixer;
  const char* kind() const override { return "Identity"; }
  Shape plan(const Shape& x, Plan&) const override { return x; }
  bool has_tap() const override { return false; }
  bool has_branch() const override { return false; }

 protected:
  Tensor mix(const Tensor&) override {
    fail(ErrorKind::internal, "identity: removed attention has no head outputs");
  }
};

struct Removed {
  using Options = NoOptions;
  static constexpr auto about = "removes attention whole: block = x + mlp(norm2(x))";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options&) {
    return std::make_unique<Identity>(s);
  }
  static MixerLedger ledger(const MixerShape&, int64_t, const Options&) { return {}; }
};

}  // namespace

OCCAM_REGISTER_MIXER(identity, Removed);

}  // namespace occam
