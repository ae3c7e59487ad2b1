#include "nn/mixers/skeleton.h"
#include "ops/concat/op.h"
#include "ops/reduce/op.h"
#include "ops/view/op.h"

namespace occam {

namespace {

/// Each token beside the average of all of them: [b, t, h, w] -> [b, t, h, 2w].
class BesideMean : public Module {
 public:
  const char* kind() const override { return "BesideMean"; }
  Shape plan(const Shape& x, Plan&) const override { return x.with(-1, 2 * x[-1]); }

 protected:
  Tensor forward(const Tensor& x) override { return concat({x, expand(mean(x, {1}, true), x.shape())}, 3); }
};

}  // namespace

OCCAM_REGISTER_MIXER(pool, {"pool", "each token beside the average of all tokens",
                            [](const MixerShape& s, const MixerOptions& o) -> std::unique_ptr<TokenMixer> {
                              read_options<NoOptions>("pool", o);
                              return std::make_unique<SkeletonMixer>(
                                  "Pool", s,
                                  MixerCore{"pool", std::make_unique<BesideMean>(), 2 * s.head_dim()});
                            },
                            [](const MixerShape& s, int64_t t, const MixerOptions&) {
                              return skeleton_ledger(s, t, {0, 0, 1}, 2 * s.head_dim());
                            }});

}  // namespace occam
