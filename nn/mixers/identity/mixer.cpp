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

}  // namespace

OCCAM_REGISTER_MIXER(identity,
                     {"identity", "removes attention whole: block = x + mlp(norm2(x))",
                      [](const MixerShape& s, const MixerOptions& o) -> std::unique_ptr<TokenMixer> {
                        read_options<NoOptions>("identity", o);
                        return std::make_unique<Identity>(s);
                      },
                      [](const MixerShape&, int64_t, const MixerOptions&) { return MixerLedger{}; }});

}  // namespace occam
