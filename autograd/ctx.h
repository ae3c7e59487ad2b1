#pragma once
// What an op's forward leaves for its backward.
#include <any>
#include <vector>

#include "autograd/op_entry.h"

namespace occam {

/// A tensor kept for backward, without its graph, with the version it had.
struct Saved {
  Tensor tensor;
  uint64_t version = 0;
};

class Ctx {
 public:
  struct InputMeta {
    Shape shape;
    DType given = DType::f32;   // of the tensor
    DType dtype = DType::f32;   // as the op sees it (bf16 inputs are f32 here on the CPU)
    DType wanted = DType::f32;  // of this input's gradient: what the engine adds up
    Device device;
    bool needs_grad = false;
    bool present = false;  // false for an optional input that was left out
  };

  /// True when a backward may follow; forward may skip work that only backward uses.
  bool recording() const { return recording_; }
  /// Keeps tensors (inputs or outputs) for backward; nothing when not recording.
  void save(std::initializer_list<Tensor> tensors);
  /// The i-th saved tensor. Throws when it was changed in place since, or when backward already ran.
  Tensor saved(size_t i) const;
  /// Is the gradient of this input wanted?
  bool needs(size_t input) const { return inputs_[input].needs_grad; }
  size_t input_count() const { return inputs_.size(); }
  const Shape& shape_of(size_t input) const { return inputs_[input].shape; }
  DType dtype_of(size_t input) const { return inputs_[input].dtype; }
  /// Before bf16 and f16 became f32 on the CPU: what an op that rounds its outputs itself rounds them to.
  DType given_dtype_of(size_t input) const { return inputs_[input].given; }
  Device device_of(size_t input) const { return inputs_[input].device; }
  /// The dtype in which a gradient of this input is best made: f32 for a parameter of mixed precision, whose
  /// gradients are added up so, else dtype_of(input). An op may return either; the engine converts.
  DType grad_dtype_of(size_t input) const {
    const InputMeta& m = inputs_[input];
    return m.wanted == DType::f32 && m.dtype != DType::f64 ? DType::f32 : m.dtype;
  }
  template <class A>
  const A& attrs() const {
    return *std::any_cast<A>(&attrs_);
  }

 private:
  friend Outs run(const OpEntry&, In, std::any);
  friend class OpNode;
  const OpEntry* entry_ = nullptr;
  bool recording_ = false;
  bool released_ = false;
  std::vector<InputMeta> inputs_;
  std::vector<Saved> saved_;
  std::any attrs_;
};

}  // namespace occam
