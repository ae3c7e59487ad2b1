#pragma once
// A trainable tensor: a float master and, for another compute dtype, a shadow copy of it.
#include <functional>

#include "core/rng.h"
#include "core/tensor.h"

namespace occam {

/// Fills a new f32 CPU tensor; `key` is the hash of (seed, dotted name), see nn/init.h.
using Init = std::function<void(const Tensor&, uint64_t key)>;

class Parameter {
 public:
  /// Knows shape and initialiser; has no memory until initialize() or set_values().
  Parameter(const Shape& shape, Init init) : shape_(shape), init_(std::move(init)) {}
  Parameter(const Parameter&) = delete;
  Parameter& operator=(const Parameter&) = delete;

  const Shape& shape() const { return shape_; }
  int64_t numel() const { return shape_.numel(); }
  /// False until initialize() or set_values(): a model may be described without memory for its weights.
  bool has_values() const { return master_.defined(); }
  void initialize(uint64_t key, Device device = kCPU);
  /// Copies `values` (any floating dtype, any device) into the master. Throws Error{internal} for another
  /// shape.
  void set_values(const Tensor& values);

  /// The f32 leaf that optimisers change. Throws Error{internal} while there are no values.
  const Tensor& master() const;
  /// What forward uses: the master, or its shadow in the compute dtype, refreshed when the master has changed
  /// since. Gradients of the shadow arrive at the master.
  const Tensor& value();
  DType compute_dtype() const { return compute_dtype_; }
  void set_compute_dtype(DType dtype);
  /// The shadow, made if need be; undefined when value() is the master. An optimiser kernel that writes
  /// master and shadow together calls shadow_is_current() afterwards.
  const Tensor& shadow();
  void shadow_is_current() { shadow_version_ = master().version(); }

  bool trainable() const { return trainable_; }
  void set_trainable(bool trainable);
  /// Gradient of the master; undefined before the first backward.
  Tensor grad() const;
  void zero_grad();

  /// Moves values to a device; a gradient is dropped, the tensors' identity changes (optimisers are made
  /// afterwards).
  void to(Device device);
  Device device() const { return master_ ? master_.device() : device_; }

 private:
  void adopt(Tensor master);

  Shape shape_;
  Init init_;
  Tensor master_, shadow_;
  uint64_t shadow_version_ = 0;
  DType compute_dtype_ = DType::f32;
  bool trainable_ = true;
  Device device_ = kCPU;
};

}  // namespace occam
