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

struct Pool {
  using Options = NoOptions;
  static constexpr auto about = "each token beside the average of all tokens";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options&) {
    return std::make_unique<SkeletonMixer>(
        "Pool", s, MixerCore{"pool", std::make_unique<BesideMean>(), 2 * s.head_dim()});
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options&) {
    return skeleton_ledger(s, t, {0, 0, 1}, 2 * s.head_dim());
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(pool, Pool);

}  // namespace occam
