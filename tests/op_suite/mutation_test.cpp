// The suite is itself tested: ops with one planted fault each must be found by the check made for it.
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/node.h"
#include "ops/elementwise/op.h"
#include "ops/op.h"
#include "suite.h"

namespace occam {
namespace {

using spec::Arrays;
using spec::Sample;
using spec::Spec;

enum class Fault {
  none,
  wrong_value,
  scaled_backward,
  sum_blind_backward,
  ignores_stride,
  reads_unwritten,
  writes_outside,
  changes_input,
  not_repeatable,
  wrong_when_frozen,
  unversioned_save
};

int64_t calls = 0;

/// y = x * w by element, wrong in one way.
template <Fault F>
struct Product {
  struct Attrs {};
  static constexpr OpInfo info{.name = "product",
                               .contract = "x: ..., w: ... -> ...",
                               .layout = F == Fault::ignores_stride ? Layout::strided : Layout::contiguous};

  static Outs forward(Ctx& c, In in, const Attrs&) {
    Tensor x = in[0], w = in[1], y = empty_like(x);
    dispatch_float(x.dtype(), [&]<class T>() {
      T *a = x.data<T>(), *b = w.data<T>(), *out = y.data<T>();
      int64_t n = x.numel();
      for (int64_t i = 0; i < n; ++i) {
        if (F == Fault::reads_unwritten && i == n - 1)
          out[i] = out[i] * 0 + a[i] * b[i];
        else
          out[i] = a[i] * b[i];
      }
      if (F == Fault::wrong_value) out[n / 2] *= T(1.001);
      if (F == Fault::writes_outside) out[n] = T(1);
      if (F == Fault::changes_input) a[0] += T(1);
      if (F == Fault::not_repeatable) out[0] *= T(1) + T(++calls % 7) * T(1e-7);
    });
    c.save({F == Fault::unversioned_save ? raw::as_strided(from_storage_of(x), x.shape(), x.strides(), 0) : x,
            w});
    return {y};
  }

  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor x = c.saved(0), w = c.saved(1), gx = empty_like(x), gw = empty_like(w);
    dispatch_float(x.dtype(), [&]<class T>() {
      for (int64_t i = 0; i < x.numel(); ++i) {
        T factor = F == Fault::scaled_backward                    ? T(3)
                   : F == Fault::wrong_when_frozen && !c.needs(1) ? T(2)
                                                                  : T(1);
        gx.data<T>()[i] = factor * gy[0].data<T>()[i] * w.data<T>()[i];
        gw.data<T>()[i] = gy[0].data<T>()[i] * x.data<T>()[i];
      }
    });
    return {c.needs(0) ? gx : Tensor(), c.needs(1) ? gw : Tensor()};
  }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }

  /// The same memory behind another storage object, so that its version never moves.
  static Tensor from_storage_of(const Tensor& x) {
    auto impl = std::make_shared<TensorImpl>(x.impl());
    impl->autograd.reset();
    impl->storage = std::make_shared<Storage>(x.impl().storage->data(), x.impl().storage->bytes(), x.device(),
                                              x.impl().storage);
    return Tensor(std::move(impl));
  }
};

/// Softmax whose backward is three times too large: invisible to a loss that sums the output.
struct SumBlind {
  struct Attrs {};
  static constexpr OpInfo info{.name = "sum_blind", .contract = "x: n -> n"};
  static Outs forward(Ctx& c, In in, const Attrs&) {
    Tensor y = empty_like(in[0]);
    double sum = 0;
    for (double v : in[0].to_vector<double>()) sum += std::exp(v);
    dispatch_float(y.dtype(), [&]<class T>() {
      for (int64_t i = 0; i < y.numel(); ++i) y.data<T>()[i] = T(std::exp(double(in[0].data<T>()[i])) / sum);
    });
    c.save({y});
    return {y};
  }
  static Grads backward(Ctx& c, GradsOut gy) {
    Tensor y = c.saved(0), gx = empty_like(y);
    dispatch_float(y.dtype(), [&]<class T>() {
      T dot = 0;
      for (int64_t i = 0; i < y.numel(); ++i) dot += y.data<T>()[i] * gy[0].data<T>()[i];
      for (int64_t i = 0; i < y.numel(); ++i)
        gx.data<T>()[i] = 3 * y.data<T>()[i] * (gy[0].data<T>()[i] - dot);
    });
    return {gx};
  }
  static Cost cost(Shapes, DType, const Attrs&) { return {}; }
};

template <Fault F>
std::string verdict(const char* check) {
  Spec spec("mutant");
  Arrays (*naive)(const Arrays&) = [](const Arrays& in) -> Arrays {
    spec::Array y = in[0];
    for (size_t i = 0; i < y.v.size(); ++i) y.v[i] *= in[1].v[i];
    return {y};
  };
  Sample& s = spec.sample(
      "3x5", {spec::randn({3, 5}), spec::randn({3, 5})},
      [](const std::vector<Tensor>& in) {
        return apply<Product<F>>({in[0], in[1]});
      },
      naive);
  return suite::check_named(check).run(spec, s);
}

TEST(Mutation, CorrectOpPassesEveryCheck) {
  for (const suite::Check& check : suite::all_checks()) {
    if (check.on_gpu) continue;
    std::string v = verdict<Fault::none>(check.name);
    EXPECT_TRUE(v.empty() || v.starts_with("skip:")) << check.name << ": " << v;
  }
}

TEST(Mutation, EachFaultIsFound) {
  auto found = [](const std::string& v) { return !v.empty() && !v.starts_with("skip:"); };
  EXPECT_TRUE(found(verdict<Fault::wrong_value>("naive_f32")));
  EXPECT_TRUE(found(verdict<Fault::wrong_value>("naive_f64")));
  EXPECT_TRUE(found(verdict<Fault::scaled_backward>("gradcheck")));
  EXPECT_TRUE(found(verdict<Fault::ignores_stride>("strides")));
  EXPECT_TRUE(found(verdict<Fault::reads_unwritten>("memory")));
  EXPECT_TRUE(found(verdict<Fault::writes_outside>("memory")));
  EXPECT_TRUE(found(verdict<Fault::changes_input>("memory")));
  EXPECT_TRUE(found(verdict<Fault::not_repeatable>("repeat")));
  EXPECT_TRUE(found(verdict<Fault::wrong_when_frozen>("frozen")));
  EXPECT_TRUE(found(verdict<Fault::unversioned_save>("changed")));
}

TEST(Mutation, RandomCotangentSeesWhatASumDoesNot) {
  Spec spec("sum_blind");
  Sample& s = spec.sample(
      "7", {spec::randn({7})}, [](const std::vector<Tensor>& in) { return apply<SumBlind>({in[0]}); },
      [](const Arrays& in) { return in; });
  EXPECT_NE(suite::check_named("gradcheck").run(spec, s), "");
}

TEST(Mutation, WhatACapturedStepCannotHaveIsFound) {
  if (!cuda_available()) GTEST_SKIP() << "no GPU";
  auto verdict_on = [](const spec::Call& call) {
    Spec spec("host_value");
    Sample& s = spec.sample("7", {spec::uniform({7}, 1, 2)}, call, [](const Arrays& in) { return in; });
    return suite::check_named("cuda_captured_f32").run(spec, s);
  };
  auto scaled = [](const Tensor& x, double factor) {
    return std::vector{mul(x, full({1}, factor, options_of(x)))};
  };
  auto first_of = [](const Tensor& x) { return detach(x).to_vector<double>()[0]; };
  EXPECT_EQ(verdict_on([&](const std::vector<Tensor>& in) { return scaled(in[0], 3); }), "");
  const std::string read =
      verdict_on([&](const std::vector<Tensor>& in) { return scaled(in[0], first_of(in[0])); });
  EXPECT_NE(read.find("capture of a CUDA graph failed"), std::string::npos) << read;
  // A number on the host that is right at every call and stays in the recording: the first four calls are
  // eager.
  int count = 0;
  double factor = 0;
  const std::string kept = verdict_on([&](const std::vector<Tensor>& in) {
    if (++count < 5) factor = first_of(in[0]);
    return scaled(in[0], factor);
  });
  EXPECT_NE(kept.find("output 0: element 0 of 7"), std::string::npos) << kept;
}

}  // namespace
}  // namespace occam
