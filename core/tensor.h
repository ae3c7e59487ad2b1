#pragma once
// Tensor: a shared handle to strided data. Copying a Tensor makes an alias.
//
// The functions here know nothing of gradients: views and conversions live in namespace `raw` and refuse a
// tensor that records gradients. Differentiable counterparts (reshape, transpose, slice, cast, ...) are ops.
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/shape.h"
#include "core/storage.h"

namespace occam {

struct AutogradMeta;  // autograd/node.h

struct TensorImpl {
  std::shared_ptr<Storage> storage;
  int64_t offset = 0;  // in elements
  Shape shape;
  Shape strides;  // in elements
  DType dtype = DType::f32;
  std::shared_ptr<AutogradMeta> autograd;  // null when the tensor takes no part in differentiation
};

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(std::shared_ptr<TensorImpl> impl) : impl_(std::move(impl)) {}

  bool defined() const { return impl_ != nullptr; }
  explicit operator bool() const { return defined(); }
  const Shape& shape() const { return impl().shape; }
  const Shape& strides() const { return impl().strides; }
  int rank() const { return shape().rank(); }
  int64_t size(int axis) const { return shape()[axis]; }
  int64_t numel() const { return shape().numel(); }
  DType dtype() const { return impl().dtype; }
  Device device() const { return impl().storage->device(); }
  bool is_cpu() const { return device().is_cpu(); }
  bool is_cuda() const { return device().is_cuda(); }
  bool is_contiguous() const;
  uint64_t version() const { return impl().storage->version(); }
  /// "f32 [8,197,192] cuda:0"
  std::string str() const;

  /// First element; checks that T is the dtype.
  template <class T>
  T* data() const {
    return static_cast<T*>(checked_data(dtype_of<T>));
  }
  void* data_ptr() const;
  /// The only element, converted to double. Waits for the device.
  double item() const;
  /// Every element in row-major order as T (float, double, int64_t ...), copied to the host.
  template <class T>
  std::vector<T> to_vector() const;

  // In place. They bump the version and refuse a tensor that needs gradients while gradients are recorded.
  /// Copies values, converting dtype and device; `source` must have the same shape or broadcast to it.
  Tensor& copy_(const Tensor& source);
  Tensor& fill_(double value);
  Tensor& zero_() { return fill_(0); }
  /// this += alpha * source, same shape, dtype and device.
  Tensor& add_(const Tensor& source, double alpha = 1);

  TensorImpl& impl() const;
  const std::shared_ptr<TensorImpl>& impl_ptr() const { return impl_; }
  bool is_same(const Tensor& other) const { return impl_ == other.impl_; }

 private:
  void* checked_data(DType dtype) const;
  std::shared_ptr<TensorImpl> impl_;
};

/// How new tensors are made.
struct TensorOptions {
  DType dtype = DType::f32;
  Device device = kCPU;
};
inline TensorOptions options_of(const Tensor& t) { return {t.dtype(), t.device()}; }

Tensor empty(const Shape& shape, TensorOptions options = {});
Tensor zeros(const Shape& shape, TensorOptions options = {});
Tensor ones(const Shape& shape, TensorOptions options = {});
Tensor full(const Shape& shape, double value, TensorOptions options = {});
inline Tensor empty_like(const Tensor& t) { return empty(t.shape(), options_of(t)); }
inline Tensor zeros_like(const Tensor& t) { return zeros(t.shape(), options_of(t)); }
/// Page-locked host memory, for asynchronous copies to a GPU.
Tensor empty_pinned(const Shape& shape, DType dtype);
/// Copies `values` (row-major) into a new tensor; values.size() must equal shape.numel().
template <class T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device = kCPU);
template <class T>
Tensor from_vector(const std::vector<T>& values) {
  return from_vector(values, Shape{int64_t(values.size())});
}

namespace raw {
Tensor as_strided(const Tensor& t, const Shape& shape, const Shape& strides, int64_t offset);
/// A view when strides allow it, else a copy. One size may be -1.
Tensor reshape(const Tensor& t, const Shape& shape);
Tensor permute(const Tensor& t, std::initializer_list<int> axes);
Tensor permute(const Tensor& t, const std::vector<int>& axes);
Tensor transpose(const Tensor& t, int a, int b);
/// Elements start, start+step, ... (length of them) along `axis`. A view.
Tensor slice(const Tensor& t, int axis, int64_t start, int64_t length, int64_t step = 1);
/// Drops `axis` at `index`. A view.
Tensor select(const Tensor& t, int axis, int64_t index);
/// Broadcasts by stride 0. A view.
Tensor expand(const Tensor& t, const Shape& shape);
Tensor unsqueeze(const Tensor& t, int axis);
Tensor squeeze(const Tensor& t, int axis);
/// `t` itself when contiguous, else a copy.
Tensor contiguous(const Tensor& t);
/// Always a new contiguous tensor.
Tensor clone(const Tensor& t);
/// `t` itself when nothing changes, else a converted copy.
Tensor to(const Tensor& t, DType dtype);
Tensor to(const Tensor& t, Device device);
}  // namespace raw

}  // namespace occam
