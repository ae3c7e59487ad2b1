#include "nn/mixers/skeleton.h"
#include "nn/plan.h"
#include "ops/activation/op.h"
#include "ops/elementwise/op.h"
#include "ops/ragged.h"
#include "ops/slice/op.h"
#include "ops/view/op.h"
#include "ops/wkv/op.h"

namespace occam {

namespace {

/// Key, value and receptance of each head from its own channels, then Bi-WKV: [b, t, h, w] -> the same.
class HeadWkv : public RaggedCore {
 public:
  explicit HeadWkv(const MixerShape& s)
      : kvr_(s.heads, s.head_dim(), 3 * s.head_dim(), false),
        decay_(param("decay", {s.dim}, init::uniform(4))),
        bonus_(param("bonus", {s.dim}, init::uniform(1))) {
    sub("kvr", kvr_);
  }
  const char* kind() const override { return "HeadWkv"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    plan.run(kvr_, x);
    plan.add_macs(4 * x.numel());  // two directions, each a sum of values and one of weights
    return x;
  }

 protected:
  Tensor forward(const Tensor& x, const Sequences& rows) override {
    const int64_t b = x.size(0), t = x.size(1), w = x.size(3);
    Tensor kvr = kvr_(x);
    auto part = [&](int64_t n) { return reshape(slice(kvr, 3, n * w, w), {b, t, decay_.numel()}); };
    Tensor y = wkv(as_rows(part(0), rows), as_rows(part(1), rows), decay_.value(), bonus_.value(), rows);
    return reshape(sigmoid(part(2)) * as_image(y, rows), x.shape());
  }

 private:
  GroupedLinear kvr_;
  Parameter &decay_, &bonus_;
};

struct BiWkv {
  using Options = ScanOptions;
  static constexpr auto about = "Vision-RWKV's bidirectional averages with decay";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& scan) {
    return std::make_unique<SkeletonMixer>(
        "BiWkv", s, MixerCore{"wkv", std::make_unique<HeadWkv>(s), s.head_dim()}, scan);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options&) {
    const int64_t kvr = 3 * s.dim * s.head_dim();
    return skeleton_ledger(s, t, {kvr + 2 * s.dim, t * (kvr + 4 * s.dim), t}, s.head_dim());
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(biwkv, BiWkv);

}  // namespace occam
