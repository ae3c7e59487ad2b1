#include "core/tensor.h"

#include <omp.h>

#include <cstring>
#include <type_traits>

#include "core/check.h"
#include "core/dispatch.h"
#include "core/grad_mode.h"
#include "core/trace.h"
#if OCCAM_CUDA
#include "core/cuda/backend.h"
#endif

namespace occam {

TensorImpl& Tensor::impl() const {
  OCCAM_CHECK(impl_ != nullptr, ErrorKind::internal, "use of an undefined tensor");
  return *impl_;
}

bool Tensor::is_contiguous() const {
  const Shape& s = shape();
  int64_t expected = 1;
  for (int i = s.rank() - 1; i >= 0; --i) {
    if (s[i] == 1) continue;
    if (s[i] == 0) return true;
    if (strides()[i] != expected) return false;
    expected *= s[i];
  }
  return true;
}

std::string Tensor::str() const {
  if (!defined()) return "undefined";
  std::string text = std::string(name_of(dtype())) + " " + shape().str();
  return is_cpu() ? text : text + " " + device().str();
}

void* Tensor::data_ptr() const {
  const TensorImpl& i = impl();
  return static_cast<char*>(i.storage->data()) + i.offset * int64_t(size_of(i.dtype));
}

void* Tensor::checked_data(DType wanted) const {
  OCCAM_CHECK(dtype() == wanted, ErrorKind::internal, "data of a {} tensor asked for as {}", name_of(dtype()),
              name_of(wanted));
  return data_ptr();
}

namespace {

Tensor make(std::shared_ptr<Storage> storage, const Shape& shape, DType dtype) {
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = std::move(storage);
  impl->shape = shape;
  impl->strides = contiguous_strides(shape);
  impl->dtype = dtype;
  return Tensor(std::move(impl));
}

size_t bytes_of(const Shape& shape, DType dtype) {
  int64_t bytes = 0;
  OCCAM_CHECK(!__builtin_mul_overflow(shape.numel(), int64_t(size_of(dtype)), &bytes), ErrorKind::shape,
              "a {} tensor of shape {} is larger than memory can be", name_of(dtype), shape.str());
  return size_t(bytes);
}

/// Calls f(offset_a, offset_b, count) for every innermost run, of many elements on several threads; strides
/// of the run are the last ones.
template <class F>
void for_each_run(const Shape& shape, const Shape& a, const Shape& b, F&& f) {
  const int rank = shape.rank();
  if (shape.numel() == 0) return;
  if (rank == 0) return f(0, 0, 1);
  const int64_t runs = shape.numel() / shape[-1];
  const int64_t parts =
      shape.numel() > 65536 && !omp_in_parallel() ? std::min<int64_t>(runs, omp_get_max_threads()) : 1;
#pragma omp parallel for schedule(static) if (parts > 1)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * runs / parts, last = (part + 1) * runs / parts;
    int64_t offset_a = 0, offset_b = 0, rest = first;
    Shape index = shape;
    for (int i = rank - 2; i >= 0; --i) {
      index[i] = rest % shape[i], rest /= shape[i];
      offset_a += index[i] * a[i], offset_b += index[i] * b[i];
    }
    for (int64_t r = first; r < last; ++r) {
      f(offset_a, offset_b, shape[-1]);
      for (int i = rank - 2; i >= 0; --i) {
        offset_a += a[i], offset_b += b[i];
        if (++index[i] < shape[i]) break;
        offset_a -= a[i] * shape[i], offset_b -= b[i] * shape[i];
        index[i] = 0;
      }
    }
  }
}

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, bool>)
    return value != From(0);
  else if constexpr (std::is_same_v<To, bf16> || std::is_same_v<To, f16>)
    return To(float(value));
  else
    return To(value);
}

void copy_host(const Tensor& to, const Tensor& from) {
  int64_t step_to = to.rank() ? to.strides()[-1] : 0, step_from = from.rank() ? from.strides()[-1] : 0;
  dispatch_all(to.dtype(), [&]<class T>() {
    dispatch_all(from.dtype(), [&]<class F>() {
      T* t = to.data<T>();
      const F* f = from.data<F>();
      for_each_run(to.shape(), to.strides(), from.strides(), [&](int64_t i, int64_t j, int64_t n) {
        if constexpr (std::is_same_v<T, F>) {
          if (step_to == 1 && step_from == 1) {
            std::memcpy(t + i, f + j, size_t(n) * sizeof(T));
            return;
          }
        }
        for (int64_t k = 0; k < n; ++k) t[i + k * step_to] = convert<T>(f[j + k * step_from]);
      });
    });
  });
}

void refuse_tracked(const Tensor& t, const char* what) {
  OCCAM_CHECK(!grad_enabled() || t.impl().autograd == nullptr, ErrorKind::internal,
              "{} on a tensor that records gradients ({}); use an op, detach() or NoGrad", what, t.str());
}

double moved_bytes(const Tensor& t) { return double(t.numel()) * double(size_of(t.dtype())); }

const char* kind_of_copy(const Tensor& to, const Tensor& from) {
  if (to.device() != from.device()) return "transfer";
  return to.dtype() != from.dtype() ? "convert" : "copy";
}

/// Copy without checks; `to` and `from` have equal shapes.
void copy_values(const Tensor& to, const Tensor& from) {
  if (to.numel() == 0) return;
  TraceSpan span(kind_of_copy(to, from), to.is_cuda() ? to.device() : from.device());
  span.set_work({0, moved_bytes(to) + moved_bytes(from)});
  if (to.is_cpu() && from.is_cpu()) return copy_host(to, from);
#if OCCAM_CUDA
  Device gpu = to.is_cuda() ? to.device() : from.device();
  void* stream = current_stream(gpu).handle;
  if (to.is_cuda() && from.is_cuda() && to.device() == from.device()) {
    cuda::copy_strided(to.data_ptr(), to.dtype(), to.strides(), from.data_ptr(), from.dtype(), from.strides(),
                       to.shape(), stream);
  } else if (to.dtype() == from.dtype() && to.is_contiguous() && from.is_contiguous()) {
    cuda::memcpy_async(to.data_ptr(), from.data_ptr(), bytes_of(to.shape(), to.dtype()), stream);
    if (to.is_cpu()) cuda::synchronize_stream(stream);
  } else if (to.is_cuda()) {
    // Convert where the data is, so that one plain transfer remains.
    Tensor staged = empty(from.shape(), {to.dtype(), from.device()});
    copy_values(staged, from);
    Tensor moved = to.is_contiguous() ? to : empty(to.shape(), options_of(to));
    copy_values(moved, staged);
    cuda::synchronize_stream(stream);  // `staged` is pageable memory about to be freed
    if (!to.is_contiguous()) copy_values(to, moved);
  } else {
    Tensor staged = empty(from.shape(), {to.dtype(), from.device()});
    copy_values(staged, from);
    Tensor moved = to.is_contiguous() ? to : empty(to.shape(), options_of(to));
    copy_values(moved, staged);
    if (!to.is_contiguous()) copy_values(to, moved);
  }
#else
  fail(ErrorKind::device, "this build has no CUDA");
#endif
}

}  // namespace

double Tensor::item() const {
  OCCAM_CHECK(numel() == 1, ErrorKind::shape, "item() of a tensor with {} elements ({})", numel(), str());
  return to_vector<double>()[0];
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  Tensor host = empty(shape(), {dtype_of<T>, kCPU});
  copy_values(host, *this);
  const T* p = host.data<T>();
  return std::vector<T>(p, p + host.numel());
}
template std::vector<float> Tensor::to_vector<float>() const;
template std::vector<double> Tensor::to_vector<double>() const;
template std::vector<int64_t> Tensor::to_vector<int64_t>() const;
template std::vector<int32_t> Tensor::to_vector<int32_t>() const;
template std::vector<uint8_t> Tensor::to_vector<uint8_t>() const;

Tensor& Tensor::copy_(const Tensor& source) {
  refuse_tracked(*this, "copy_");
  copy_values(*this, source.shape() == shape() ? source : raw::expand(source, shape()));
  impl().storage->bump_version();
  return *this;
}

Tensor& Tensor::fill_(double value) {
  refuse_tracked(*this, "fill_");
  impl().storage->bump_version();
  if (numel() == 0) return *this;
  TraceSpan span("fill", device());
  span.set_work({0, moved_bytes(*this)});
  if (is_cuda()) {
    OCCAM_ON_CUDA(
        cuda::fill_strided(data_ptr(), dtype(), strides(), shape(), value, current_stream(device()).handle));
    return *this;
  }
  int64_t step = rank() ? strides()[-1] : 0;
  dispatch_all(dtype(), [&]<class T>() {
    T* p = data<T>();
    T v = convert<T>(value);
    for_each_run(shape(), strides(), strides(), [&](int64_t i, int64_t, int64_t n) {
      for (int64_t k = 0; k < n; ++k) p[i + k * step] = v;
    });
  });
  return *this;
}

Tensor& Tensor::add_(const Tensor& source, double alpha) {
  refuse_tracked(*this, "add_");
  OCCAM_CHECK(source.shape() == shape() && source.dtype() == dtype() && source.device() == device(),
              ErrorKind::shape, "add_ of {} to {}: shape, dtype and device must be equal", source.str(),
              str());
  OCCAM_CHECK(is_contiguous() && source.is_contiguous(), ErrorKind::shape, "add_ needs contiguous tensors");
  TraceSpan span("add_", device());
  span.set_work({2 * double(numel()), 3 * moved_bytes(*this)});
  impl().storage->bump_version();
  if (is_cuda()) {
    OCCAM_ON_CUDA(cuda::add_scaled(data_ptr(), source.data_ptr(), dtype(), numel(), alpha,
                                   current_stream(device()).handle));
    return *this;
  }
  dispatch_all(dtype(), [&]<class T>() {
    T* p = data<T>();
    const T* q = source.data<T>();
    int64_t n = numel();
    if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
#pragma omp parallel for if (n > 65536)
      for (int64_t i = 0; i < n; ++i) p[i] = T(float(p[i]) + float(alpha) * float(q[i]));
    } else if constexpr (std::is_same_v<T, bool>) {
      fail(ErrorKind::shape, "add_ of bool tensors");
    } else {
      T a = T(alpha);
#pragma omp parallel for if (n > 65536)
      for (int64_t i = 0; i < n; ++i) p[i] = T(p[i] + a * q[i]);
    }
  });
  return *this;
}

Tensor empty(const Shape& shape, TensorOptions options) {
  return make(std::make_shared<Storage>(bytes_of(shape, options.dtype), options.device), shape,
              options.dtype);
}
Tensor full(const Shape& shape, double value, TensorOptions options) {
  return empty(shape, options).fill_(value);
}
Tensor zeros(const Shape& shape, TensorOptions options) { return full(shape, 0, options); }
Tensor ones(const Shape& shape, TensorOptions options) { return full(shape, 1, options); }
Tensor empty_pinned(const Shape& shape, DType dtype) {
  return make(std::make_shared<Storage>(bytes_of(shape, dtype), Storage::Pinned{}), shape, dtype);
}

template <class T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device) {
  OCCAM_CHECK(int64_t(values.size()) == shape.numel(), ErrorKind::shape, "{} values for shape {}",
              values.size(), shape.str());
  Tensor host = empty(shape, {dtype_of<T>, kCPU});
  if (!values.empty()) std::memcpy(host.data_ptr(), values.data(), values.size() * sizeof(T));
  return raw::to(host, device);
}
template Tensor from_vector(const std::vector<float>&, const Shape&, Device);
template Tensor from_vector(const std::vector<double>&, const Shape&, Device);
template Tensor from_vector(const std::vector<int64_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<int32_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<uint8_t>&, const Shape&, Device);

namespace raw {

Tensor as_strided(const Tensor& t, const Shape& shape, const Shape& strides, int64_t offset) {
  refuse_tracked(t, "a raw view");
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = t.impl().storage;
  impl->offset = offset;
  impl->shape = shape;
  impl->strides = strides;
  impl->dtype = t.dtype();
  return Tensor(std::move(impl));
}

Tensor reshape(const Tensor& t, const Shape& wanted) {
  Shape shape = wanted;
  int64_t known = 1, unknown = -1;
  for (int i = 0; i < shape.rank(); ++i) {
    if (shape[i] == -1) {
      OCCAM_CHECK(unknown < 0, ErrorKind::shape, "reshape to {}: only one size may be -1", wanted.str());
      unknown = i;
    } else {
      known *= shape[i];
    }
  }
  if (unknown >= 0 && known > 0) shape[int(unknown)] = t.numel() / known;
  OCCAM_CHECK((unknown < 0 || known > 0) && shape.numel() == t.numel(), ErrorKind::shape,
              "reshape of {} to {}: {} elements do not fit", t.shape().str(), wanted.str(), t.numel());
  if (t.is_contiguous()) return as_strided(t, shape, contiguous_strides(shape), t.impl().offset);
  // A view exists when every new axis group stays inside a run of old axes with matching strides.
  Shape strides = shape;
  const Shape &old = t.shape(), &old_strides = t.strides();
  int o = old.rank() - 1, n = shape.rank() - 1;
  bool ok = t.numel() > 0;
  while (ok && n >= 0) {
    while (o >= 0 && old[o] == 1) --o;
    if (shape[n] == 1) {  // as it would be among packed ones: kernels ask strides for whole 16-byte pieces
      strides[n] = n + 1 < shape.rank() ? strides[n + 1] * shape[n + 1] : 1;
      --n;
      continue;
    }
    int64_t step = old_strides[o], chunk = old[o];
    while (o > 0 && (old[o - 1] == 1 || old_strides[o - 1] == step * chunk)) chunk *= old[--o];
    for (int64_t left = chunk; ok && left > 1; --n) {
      ok = n >= 0 && left % shape[n] == 0;
      if (!ok) break;
      strides[n] = step;
      step *= shape[n];
      left /= shape[n];
    }
    --o;
  }
  if (ok) return as_strided(t, shape, strides, t.impl().offset);
  Tensor copy = clone(t);
  return as_strided(copy, shape, contiguous_strides(shape), 0);
}

Tensor permute(const Tensor& t, const std::vector<int>& axes) {
  OCCAM_CHECK(int(axes.size()) == t.rank(), ErrorKind::shape, "permute of {} with {} axes", t.shape().str(),
              axes.size());
  Shape shape = t.shape(), strides = t.strides();
  unsigned seen = 0;
  for (int i = 0; i < t.rank(); ++i) {
    int from = t.shape().wrap(axes[size_t(i)]);
    seen |= 1u << from;
    shape[i] = t.shape()[from];
    strides[i] = t.strides()[from];
  }
  OCCAM_CHECK(seen + 1 == 1u << t.rank(), ErrorKind::shape, "permute of {}: an axis occurs twice",
              t.shape().str());
  return as_strided(t, shape, strides, t.impl().offset);
}
Tensor permute(const Tensor& t, std::initializer_list<int> axes) {
  return permute(t, std::vector<int>(axes));
}

Tensor transpose(const Tensor& t, int a, int b) {
  std::vector<int> axes;
  for (int i = 0; i < t.rank(); ++i) axes.push_back(i);
  std::swap(axes[size_t(t.shape().wrap(a))], axes[size_t(t.shape().wrap(b))]);
  return permute(t, axes);
}

Tensor slice(const Tensor& t, int axis, int64_t start, int64_t length, int64_t step) {
  axis = t.shape().wrap(axis);
  OCCAM_CHECK(
      start >= 0 && length >= 0 && step >= 1 && (length == 0 || start + (length - 1) * step < t.size(axis)),
      ErrorKind::shape, "slice [{} : {} elements : step {}] of axis {} of {} is out of range", start, length,
      step, axis, t.shape().str());
  return as_strided(t, t.shape().with(axis, length), t.strides().with(axis, t.strides()[axis] * step),
                    t.impl().offset + start * t.strides()[axis]);
}

Tensor select(const Tensor& t, int axis, int64_t index) {
  Tensor one = slice(t, axis, index < 0 ? index + t.size(axis) : index, 1);
  return squeeze(one, axis);
}

Tensor expand(const Tensor& t, const Shape& shape) {
  OCCAM_CHECK(broadcast_shapes(t.shape(), shape) == shape, ErrorKind::shape, "{} does not expand to {}",
              t.shape().str(), shape.str());
  Shape strides = shape;
  int shift = shape.rank() - t.rank();
  for (int i = 0; i < shape.rank(); ++i)
    strides[i] = i < shift || (t.shape()[i - shift] == 1 && shape[i] != 1) ? 0 : t.strides()[i - shift];
  return as_strided(t, shape, strides, t.impl().offset);
}

Tensor unsqueeze(const Tensor& t, int axis) {
  if (axis < 0) axis += t.rank() + 1;
  OCCAM_CHECK(axis >= 0 && axis <= t.rank(), ErrorKind::shape, "unsqueeze axis {} of {}", axis,
              t.shape().str());
  Shape shape, strides;
  for (int i = 0; i <= t.rank(); ++i) {
    if (i == axis) shape.push_back(1), strides.push_back(1);
    if (i < t.rank()) shape.push_back(t.shape()[i]), strides.push_back(t.strides()[i]);
  }
  return as_strided(t, shape, strides, t.impl().offset);
}

Tensor squeeze(const Tensor& t, int axis) {
  OCCAM_CHECK(t.size(axis) == 1, ErrorKind::shape, "squeeze of axis {} of {}, which is not 1", axis,
              t.shape().str());
  return as_strided(t, t.shape().without(axis), t.strides().without(axis), t.impl().offset);
}

Tensor clone(const Tensor& t) {
  refuse_tracked(t, "a raw copy");
  Tensor copy = empty(t.shape(), options_of(t));
  copy_values(copy, t);
  return copy;
}

Tensor contiguous(const Tensor& t) { return t.is_contiguous() ? t : clone(t); }

Tensor to(const Tensor& t, DType dtype) {
  if (t.dtype() == dtype) return t;
  refuse_tracked(t, "a raw conversion");
  Tensor copy = empty(t.shape(), {dtype, t.device()});
  copy_values(copy, t);
  return copy;
}

Tensor to(const Tensor& t, Device device) {
  if (t.device() == device) return t;
  refuse_tracked(t, "a raw transfer");
  Tensor copy = empty(t.shape(), {t.dtype(), device});
  copy_values(copy, t);
  return copy;
}

}  // namespace raw

}  // namespace occam
