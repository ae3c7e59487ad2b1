#include <cmath>

#include "nn/mixers/matrix_core.h"
#include "nn/plan.h"
#include "ops/activation/op.h"
#include "ops/cast/op.h"
#include "ops/elementwise/op.h"
#include "ops/matrix_scan/op.h"
#include "ops/view/op.h"

namespace occam {

namespace {

/// `retain`: fixed decays, one for each head, in both directions at once.
class Retain : public RaggedCore {
 public:
  Retain(const MixerShape& s, int64_t n)
      : n_(n), macs_(scan_macs(s, 1, n)), qkv_(s.heads, s.head_dim(), 2 * n + s.head_dim(), false) {
    sub("qkv", qkv_);
    for (int64_t i = 0; i < s.heads; ++i) {
      const double part = s.heads > 1 ? double(i) / double(s.heads - 1) : 0;
      logs_.push_back(float(std::log1p(-std::pow(2.0, -5 - 4 * part))));
    }
    log_decay_ = from_vector(logs_, {1, 1, 1, s.heads});
  }
  const char* kind() const override { return "Retain"; }
  Shape plan(const Shape& x, Plan& plan) const override {
    plan.run(qkv_, x);
    plan.add_macs(x[0] * x[1] * macs_);
    return x;
  }

 protected:
  Tensor forward(const Tensor& x, const Sequences& rows) override {
    const int64_t b = x.size(0), t = x.size(1), h = x.size(2), w = x.size(3);
    auto [q, k, v] = split_qkv(qkv_(x), n_);
    if (log_decay_.device() != x.device()) log_decay_ = raw::to(log_decay_, x.device());
    // Made anew in each call: a captured step must find it where it was, whatever other batches came between.
    const Tensor log_decays = raw::contiguous(raw::expand(log_decay_, {b, t, 2, h}));
    const Tensor scale = rows ? row_scale(rows, x) : row_scale(t, options_of(q));
    Tensor y = scan_of(for_both(q * scale), for_both(k), for_both(v), log_decays, {.merge = true}, rows);
    return reshape(y, {b, t, h, w});
  }

 private:
  /// [1,t,h,1]: 1 / sqrt(n sum over j of gamma^|i-j|) of row i; made once for a number of tokens.
  const Tensor& row_scale(int64_t t, TensorOptions options) {
    if (row_scale_ && row_scale_.size(1) == t && row_scale_.dtype() == options.dtype &&
        row_scale_.device() == options.device)
      return row_scale_;
    std::vector<float> scale;
    for (int64_t i = 0; i < t; ++i)
      for (double log_decay : logs_) {
        auto before = [&](int64_t tokens) {  // sum of gamma^d over 0 < d <= tokens
          return std::exp(log_decay) * std::expm1(double(tokens) * log_decay) / std::expm1(log_decay);
        };
        scale.push_back(float(1 / std::sqrt(double(n_) * (1 + before(i) + before(t - 1 - i)))));
      }
    row_scale_ =
        raw::to(raw::to(from_vector(scale, {1, t, int64_t(logs_.size()), 1}), options.dtype), options.device);
    return row_scale_;
  }
  /// The same where a row's place and the length of its sequence are known to the device alone: the sum is
  /// the retention of ones. Rows of no sequence have a sum of 0, which is raised to 1.
  Tensor row_scale(const Sequences& rows, const Tensor& x) const {
    const int64_t t = x.size(1), h = x.size(2);
    const Tensor one = ones({1, t, 1, h, 1}, {DType::f32, x.device()});
    const Tensor sum = scan_of(one, one, one, raw::expand(log_decay_, {1, t, 2, h}), {.merge = true}, rows);
    const Tensor at_least_one = add_scalar(relu(add_scalar(sum, -1)), 1);
    return cast(reshape(exp(log(at_least_one * double(n_)) * -0.5), {1, t, h, 1}), x.dtype());
  }

  int64_t n_, macs_;
  GroupedLinear qkv_;
  std::vector<float> logs_;  // of each head's decay
  Tensor log_decay_;         // the same [1,1,1,h]
  Tensor row_scale_;
};

struct Retention {
  using Options = KeyOptions;
  static constexpr auto about = "linear attention with a fixed decay of each head by distance";
  static std::unique_ptr<TokenMixer> make(const MixerShape& s, const Options& o) {
    return std::make_unique<SkeletonMixer>(
        "Retention", s, MixerCore{"retain", std::make_unique<Retain>(s, o.key_of(s)), s.head_dim()}, o.scan);
  }
  static MixerLedger ledger(const MixerShape& s, int64_t t, const Options& o) {
    const int64_t n = o.key_of(s), qkv = s.dim * (2 * n + s.head_dim());
    return skeleton_ledger(s, t, {qkv, t * qkv + scan_macs(s, t, n), scan_depth(t)}, s.head_dim());
  }
};

}  // namespace

OCCAM_REGISTER_MIXER(retention, Retention);

}  // namespace occam
