#include "nn/mixers/skeleton.h"
#include "nn/plan.h"
#include "ops/dwconv/op.h"
#include "ops/view/op.h"

namespace occam {

namespace {

class GridConvolution : public Module {
 public:
  GridConvolution(const MixerShape& s, int64_t kernel)
      : grid_h_(s.grid_h),
        grid_w_(s.grid_w),
        weight_(param("weight", {kernel, kernel, s.dim}, init::fan_in_uniform(kernel * kernel))),
        prefix_(param("prefix_weight", {2, s.dim}, init::fan_in_uniform(2))),
        bias_(param("bias", {s.dim}, init::fan_in_uniform(kernel * kernel))) {}
  const char* kind() const override { return "GridConvolution"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    const int64_t patches = grid_h_ * grid_w_;
    plan.add_macs(x[0] * (patches * weight_.numel() + (x[1] - patches) * prefix_.numel()));
    return x;
  }

 protected:
  Tensor forward(const Tensor& x) override {
    Tensor flat = reshape(x, {x.size(0), x.size(1), x.size(2) * x.size(3)});
    return reshape(dwconv(flat, weight_.value(), prefix_.value(), bias_.value(), grid_h_, grid_w_),
                   x.shape());
  }

 private:
  int64_t grid_h_, grid_w_;
  Parameter &weight_, &prefix_, &bias_;
};

struct DepthwiseConvolution {
  struct Options {
    static constexpr MixerKnob knob{"kernel", 1, 2, 1023};
    int64_t kernel = 3;

    template <class V>
    void visit(V& v) {
      v("kernel", kernel, "side of the square window on the patch grid; odd", Range{1, knob.last});
    }
    void check() const { OCCAM_CHECK(kernel % 2 == 1, ErrorKind::usage, "kernel {} is not odd", kernel); }
  };
  static constexpr auto about = "depthwise convolution over the patch grid";
  static constexpr bool needs_grid = true;
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return std::make_unique<SkeletonMixer>(
        "DepthwiseConvolution", s,
        MixerCore{"conv", std::make_unique<GridConvolution>(s, o.kernel), s.head_dim()});
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t k = o.kernel, d = s.dim, patches = t - s.prefix;
    return skeleton_ledger(s, t, {d * (k * k + 3), d * (patches * k * k + 2 * s.prefix), 1}, s.head_dim());
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(dwconv, DepthwiseConvolution);

}  // namespace occam
