#pragma once
// What ops/<op>/spec.cpp says of an op: naive double-precision references and sample inputs. The suite in
// tests/op_suite derives all checks from it. Linked by tests and bench only.
#include <functional>
#include <string>
#include <vector>

#include "core/rng.h"
#include "core/tensor.h"

namespace occam::spec {

/// A plain row-major f64 array: what naive references compute on, independent of the tensor engine.
struct Array {
  Shape shape;
  std::vector<double> v;

  Array() = default;
  explicit Array(const Shape& s, double value = 0) : shape(s), v(size_t(s.numel()), value) {}
  template <class... I>
  double& operator()(I... index) {
    return v[offset({int64_t(index)...})];
  }
  template <class... I>
  double operator()(I... index) const {
    return v[offset({int64_t(index)...})];
  }
  int64_t size(int axis) const { return shape[axis]; }
  bool absent() const { return shape.rank() == 0 && v.empty(); }

 private:
  size_t offset(std::initializer_list<int64_t> index) const;
};
using Arrays = std::vector<Array>;

/// How one input of a sample is made. Floating inputs take the dtype under test and get gradients unless
/// no_grad().
struct Input {
  Shape shape;
  std::function<double(int64_t index, Rng&)> value;
  DType dtype = DType::f32;  // integer and bool inputs keep theirs
  bool wants_grad = true;
  bool is_absent = false;
  Input no_grad() const;
};
Input randn(const Shape& shape, double std = 1, double mean = 0);
Input uniform(const Shape& shape, double low, double high);
/// Standard normal with about one element in 16 scaled by `factor`: rows far from uniform.
Input outliers(const Shape& shape, double factor = 8);
/// i64 in [low, high).
Input integers(const Shape& shape, int64_t low, int64_t high);
Input bools(const Shape& shape, double probability_of_true);
/// Given values (row-major) of the dtype; a floating dtype means the dtype under test.
Input values(const Shape& shape, std::vector<double> v, DType dtype = DType::f32);
/// An optional input that is not given: an undefined tensor, an absent Array.
Input absent();

/// The op as a user calls it (attributes captured): floating tensors of the dtype under test in, outputs out.
using Call = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;
using Naive = std::function<Arrays(const Arrays&)>;

struct Sample {
  std::string name;  // unique in the spec: "2x5x197", "2x5x197-masked"
  std::vector<Input> inputs;
  Call call;
  Naive naive;
  Call composite;     // the same from plain ops: the second oracle of forward and gradients
  double length = 1;  // longest sum or chain behind one output element; the error model grows with its root
  double condition = 1;       // growth of a rounding error inside the op (exp(x): |x|), derived in the spec
  double forward_terms = 0;   // size of terms that cancel in an output element, when above its own size
  double gradient_terms = 0;  // the same for a gradient (softmax: y * gy, where rows of gx sum to 0)
  double bf16_factor = 4;  // roundings to bf16 behind one output element of a GPU kernel, derived in the spec
  bool is_small = false;   // also run under the sanitizers
  bool differentiable = true;  // false: no gradient checks (kinks at the sampled points, integer outputs)
  bool has_cuda = true;
  bool has_half = true;  // false: never called in bf16 (optimiser masters)

  Sample& small() { return is_small = true, *this; }
  Sample& sum_length(double n) { return length = n, *this; }
  Sample& conditioned(double n) { return condition = n, *this; }
  Sample& cancelling_terms(double forward, double gradient) {
    return forward_terms = forward, gradient_terms = gradient, *this;
  }
  Sample& half_roundings(double n) { return bf16_factor = n, *this; }
  Sample& no_gradient() { return differentiable = false, *this; }
  Sample& no_half() { return has_half = false, *this; }
  Sample& cpu_only() { return has_cuda = false, *this; }
  Sample& same_as(Call c) { return composite = std::move(c), *this; }
};

/// A call that must fail with a message containing `text`.
struct Bad {
  std::string name;
  std::function<void()> call;
  std::string text;
};

class Spec {
 public:
  explicit Spec(std::string folder) : folder_(std::move(folder)) {}
  Sample& sample(std::string name, std::vector<Input> inputs, Call call, Naive naive);
  void bad(std::string name, std::function<void()> call, std::string text);
  /// Bitwise repeatability is not promised, for this reason.
  void nondeterministic(std::string reason) { nondeterministic_ = std::move(reason); }
  /// The op as the samples call it cannot be recorded into a CUDA graph, for this reason.
  void uncapturable(std::string reason) { uncapturable_ = std::move(reason); }

  const std::string& folder() const { return folder_; }
  const std::vector<Sample>& samples() const { return samples_; }
  const std::vector<Bad>& bads() const { return bads_; }
  const std::string& nondeterministic_reason() const { return nondeterministic_; }
  const std::string& uncapturable_reason() const { return uncapturable_; }

 private:
  std::string folder_, nondeterministic_, uncapturable_;
  std::vector<Sample> samples_;
  std::vector<Bad> bads_;
};

const std::vector<Spec>& spec_table();

/// ops/<folder>/spec.cpp: OP_SPEC(softmax) { spec.sample(...); }
#define OP_SPEC(folder)           \
  namespace occam::spec {         \
  void spec_##folder(Spec& spec); \
  }                               \
  void occam::spec::spec_##folder(Spec& spec)

}  // namespace occam::spec
