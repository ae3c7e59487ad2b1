#include "ops/s4d/op.h"

#include <cmath>
#include <numbers>

#include "nn/mixers/skeleton.h"
#include "nn/plan.h"
#include "ops/activation/op.h"
#include "ops/ragged.h"
#include "ops/view/op.h"

namespace occam {

namespace {

double frequency(int64_t n) { return std::numbers::pi * double(n); }

/// `ssm`: the convolutions of both directions, then GELU.
class DiagonalStates : public RaggedCore {
 public:
  DiagonalStates(const MixerShape& s, int64_t n)
      : shape_(s),
        log_dt_(param("log_dt", {2, s.dim}, init::log_step())),
        a_log_(param("a_log", {2, s.dim, n}, init::constant(std::log(0.5)))),
        a_im_(param("a_im", {2, s.dim, n}, init::by_place(frequency))),
        out_(param("out", {2, s.dim, n, 2}, init::normal(std::sqrt(0.5)))),
        skip_(param("skip", {2, s.dim}, init::normal(1))) {}
  const char* kind() const override { return "DiagonalStates"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    plan.add_macs(x[0] * x[1] * 6 * a_log_.numel());
    return x.with(-1, 2 * shape_.head_dim());
  }

 protected:
  /// x [b,t,h,w] -> [b,t,h,2w].
  Tensor forward(const Tensor& x, const Sequences& rows) override {
    Tensor u = reshape(x, {x.size(0), x.size(1), shape_.dim});
    return gelu(as_image(s4d(as_rows(u, rows), log_dt_.value(), a_log_.value(), a_im_.value(), out_.value(),
                             skip_.value(), shape_.heads, rows),
                         rows));
  }

 private:
  MixerShape shape_;
  Parameter &log_dt_, &a_log_, &a_im_, &out_, &skip_;
};

struct S4d {
  struct Options {
    static constexpr MixerKnob knob{"state", 4, 4, 32};
    int64_t state = 16;
    ScanOptions scan;

    template <class V>
    void visit(V& v) {
      v("state", state, "complex states of each channel in each direction", Range{1, knob.last});
      scan.visit(v);
    }
  };
  static constexpr auto about = "a diagonal state space of every channel in both directions";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return std::make_unique<SkeletonMixer>(
        "S4d", s, MixerCore{"ssm", std::make_unique<DiagonalStates>(s, o.state), 2 * s.head_dim()}, o.scan);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t c = s.dim, n = o.state;
    return skeleton_ledger(s, t, {c * (8 * n + 4), t * 12 * c * n, tree_depth(t)}, 2 * s.head_dim());
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(s4d, S4d);

}  // namespace occam
